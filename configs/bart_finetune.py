"""A BART, imported or pretrained here, fine-tuned on pairs to generate both ways.

    python -m janus_jax.data --config=configs/bart_finetune.py:base --config.init_from=runs/bart_base --config.data.train=my/train.tsv --config.data.valid=my/dev.tsv
    python -m janus_jax.train --config=configs/bart_finetune.py:base --config.init_from=runs/bart_base --config.data.train=my/train.tsv --config.data.valid=my/dev.tsv --workdir=runs/mine_bart

Presets:
  base, large   the sizes of BART-base and BART-large. The AR half is that of stock BART (`ar_stream="content"`), so that
                it starts as good as it was, and `python -m janus_jax.convert export --format=bart` gives it back
  base_frozen, large_frozen
                every parameter of a finished AR model stays as it is; adapters for CTC rows are trained beside it

Data: TSV files, source TAB target; the defaults are my/train.tsv and my/dev.tsv. `runs/bart_base` is a checkpoint that
`python -m janus_jax.convert import` or a run of configs/bart_janus.py wrote; the data take its tokenizer.

Cost: 20,000 steps of 16,384 tokens, for one accelerator. Scores: not measured.
"""

import dataclasses
import functools

from configs import recipes
from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS


def _finetuning(architecture):
    config = default_config()
    config.data.source = "tsv"
    config.data.train = "my/train.tsv"
    config.data.valid = "my/dev.tsv"
    config.data.test = ""
    config.data.prepared = f"prepared/finetune_{architecture}"
    config.data.max_source_length = 512
    config.data.max_target_length = 128
    config.data.tokens_per_batch = 16_384
    config.data.buckets = 4

    config.model.update(dataclasses.asdict(PRESETS[architecture]))
    config.model.vocab_size = 0  # the tokenizer's
    config.model.ar_stream = "content"

    config.objective.projection_rows = 4096
    # The AR half is good already: it teaches.
    config.objective.stop_gradient.kl_ar_nar = "ar"
    config.objective.stop_gradient.kl_ar_aux = "ar"

    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "polynomial"
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0

    config.train.steps = 20_000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    return config


def _frozen(architecture):
    config = recipes.ctc(_finetuning(architecture))
    config.model.ctc_ratio = 1.0  # for targets shorter than their sources; logits of two rows a token fill the memory
    config.init_from = f"runs/{architecture}"
    config.objective.weights.ar = 0.0  # no AR rows: nothing would come of their gradients
    config.model.parallel_adapter_rank = 32
    config.train.only = "adapter|embed_ctc_positions|embed_tokens/blank"
    config.optimizer.learning_rate = 5e-4  # of new parameters
    return config


def get_config(name="base"):
    """The preset named after the colon of --config=configs/bart_finetune.py:base."""
    sizes = {"base": "bart_base", "large": "bart_large"}
    joint = {size: functools.partial(_finetuning, architecture) for size, architecture in sizes.items()}
    frozen = {f"{size}_frozen": functools.partial(_frozen, architecture) for size, architecture in sizes.items()}
    return preset(name, joint | frozen)
