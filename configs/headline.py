"""Descriptions to one-line summaries: fine-tuning of a small pretrained model, and the same model from scratch.

    python -m janus_jax.data --config=configs/headline.py:pretrained --config.init_from=runs/bart_tiny
    python -m janus_jax.train --config=configs/headline.py:pretrained --config.init_from=runs/bart_tiny --workdir=runs/headline_pretrained
    python -m janus_jax.train --config=configs/headline.py:scratch --config.text.model=runs/bart_tiny --workdir=runs/headline_scratch

`runs/bart_tiny` is a run of `configs/bart_tiny_entext.py`; both fine-tunings take its tokenizer, and the second nothing else.
The text is TSV, source TAB summary.

Cost: 700 steps, 20 to 30 minutes of one core. ROUGE-L on 1,000 validation pairs, pretrained and from scratch: AR beam 5 16.6
and 5.3, NAR 10 passes, length beam 3 14.5 and 8.7.
"""

import dataclasses

from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS

FOLDER = "../shared/data/headline"


def _headline(init_from="", tokenizer=""):
    config = default_config()
    config.model.update(dataclasses.asdict(PRESETS["bart_tiny"]))
    config.init_from, config.text.model = init_from, tokenizer
    d = config.data
    d.source, d.train, d.valid, d.test = "tsv", f"{FOLDER}/train.tsv", f"{FOLDER}/valid.tsv", ""
    d.prepared = "prepared/headline"
    d.max_source_length, d.max_target_length = 256, 64
    d.tokens_per_batch, d.buckets = 6144, 4
    config.objective.projection_rows = 1024
    config.objective.stop_gradient.kl_ar_nar = config.objective.stop_gradient.kl_ar_aux = "ar"
    o = config.optimizer
    o.learning_rate, o.schedule, o.warmup_steps, o.clip_norm = 1e-3, "cosine", 100, 1.0
    t = config.train
    t.steps, t.log_every, t.eval_every, t.checkpoint_every, t.eval_sentences = 700, 50, 175, 175, 0
    return config


def get_config(arg="pretrained"):
    """The preset named after the colon of --config=configs/headline.py:pretrained."""
    return preset(
        arg,
        {
            "pretrained": lambda: _headline(init_from="runs/bart_tiny"),
            "scratch": lambda: _headline(tokenizer="runs/bart_tiny"),
        },
    )
