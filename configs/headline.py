"""Descriptions to one-line summaries: fine-tuning of a small pretrained model, and the same model from scratch.

    python -m janus_jax.data --config=configs/headline.py:pretrained
    python -m janus_jax.train --config=configs/headline.py:pretrained --workdir=runs/headline_pretrained
    python -m janus_jax.train --config=configs/headline.py:scratch --workdir=runs/headline_scratch

Presets:
  pretrained   starts from runs/bart_tiny, a run of configs/bart_tiny_entext.py (--config.init_from names another)
  scratch      takes only the tokenizer of that run (--config.text.model names another)

Data: data/headline/train.tsv and data/headline/valid.tsv, a line each: source TAB summary. --config.data.train and
--config.data.valid name other files.

Cost: 700 steps, 20 to 30 minutes of one core. Scores, ROUGE-L on 1,000 validation pairs, pretrained and from scratch: AR
beam 5 16.6 and 5.3; NAR 10 passes, length beam 3 14.5 and 8.7.
"""

import dataclasses

from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS


def _headline():
    config = default_config()
    config.data.source = "tsv"
    config.data.train = "data/headline/train.tsv"
    config.data.valid = "data/headline/valid.tsv"
    config.data.test = ""
    config.data.prepared = "prepared/headline"
    config.data.max_source_length = 256
    config.data.max_target_length = 64
    config.data.tokens_per_batch = 6144
    config.data.buckets = 4

    config.model.update(dataclasses.asdict(PRESETS["bart_tiny"]))

    config.objective.projection_rows = 1024
    config.objective.stop_gradient.kl_ar_nar = "ar"
    config.objective.stop_gradient.kl_ar_aux = "ar"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0

    config.train.steps = 700
    config.train.log_every = 50
    config.train.eval_every = 175
    config.train.checkpoint_every = 175
    config.train.eval_sentences = 0
    return config


def _pretrained():
    config = _headline()
    config.init_from = "runs/bart_tiny"
    return config


def _scratch():
    config = _headline()
    config.text.model = "runs/bart_tiny"
    return config


def get_config(name="pretrained"):
    """The preset named after the colon of --config=configs/headline.py:pretrained."""
    return preset(name, {"pretrained": _pretrained, "scratch": _scratch})
