"""A BART, imported or pretrained here, fine-tuned on pairs to generate both ways.

    python -m janus_jax.data --config=configs/bart_finetune.py:base --config.init_from=runs/bart_base --config.data.train=my/train.tsv --config.data.valid=my/dev.tsv
    python -m janus_jax.train --config=configs/bart_finetune.py:base --config.init_from=runs/bart_base --config.data.train=my/train.tsv --config.data.valid=my/dev.tsv --workdir=runs/mine_bart

`runs/bart_base` is a checkpoint (README, "Bring a BART"); the data take its tokenizer. The text is TSV, source TAB target.
Presets: base, large, with the AR half as stock BART has it (`ar_stream="content"`), so that it starts as good as it was, and
`python -m janus_jax.convert export --format=bart` gives it back. Scores: not measured.
"""

import dataclasses

from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS


def _finetuning(architecture):
    config = default_config()
    config.model.update(dataclasses.asdict(PRESETS[architecture]))
    config.model.vocab_size = 0  # the tokenizer's
    config.model.ar_stream = "content"
    d = config.data
    d.source, d.train, d.valid, d.test = "tsv", "my/train.tsv", "my/dev.tsv", ""
    d.prepared = f"prepared/finetune_{architecture}"
    d.max_source_length, d.max_target_length = 512, 128
    d.tokens_per_batch, d.buckets = 16_384, 4
    config.objective.projection_rows = 4096
    # The AR half is good already: it teaches.
    config.objective.stop_gradient.kl_ar_nar = config.objective.stop_gradient.kl_ar_aux = "ar"
    o = config.optimizer
    o.learning_rate, o.schedule, o.warmup_steps, o.weight_decay, o.clip_norm = 5e-5, "polynomial", 500, 0.01, 1.0
    t = config.train
    t.steps, t.eval_every, t.checkpoint_every = 20_000, 1000, 1000
    return config


def get_config(arg="base"):
    """The preset named after the colon of --config=configs/bart_finetune.py:base."""
    return preset(arg, {"base": lambda: _finetuning("bart_base"), "large": lambda: _finetuning("bart_large")})
