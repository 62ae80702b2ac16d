"""BART-JANUS pretraining: a BART learns to generate non-autoregressively too, by denoising (the released recipe).

    python -m janus_jax.data --config=configs/bart_janus.py:base --config.data.train='corpus/*.txt.gz' --config.init_from=runs/bart_base
    python -m janus_jax.train --config=configs/bart_janus.py:base --config.data.train='corpus/*.txt.gz' --config.init_from=runs/bart_base --workdir=runs/bart_janus

Presets:
  base, large   the sizes of BART-base and BART-large

Data: plain text, a document a line, in files that a pattern names; the default is corpus/*. `runs/bart_base` is a BART that
`python -m janus_jax.convert import` wrote; its tokenizer cuts the text. Without `init_from` a byte-level BPE tokenizer is
trained, and the model from scratch.

Cost: the released recipe is 8 GPUs x 3 x 512 tokens x 16 micro-batches a step, at most a million steps, "16 GPU days".
Batches are global here: a mesh of up to 8 devices trains the same; docs/scaling.md has the flags for more. Scores: not measured.
"""

import dataclasses

from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS


def pretraining(architecture):
    """The objective, noise and optimizer of the released pretraining for one of `janus_jax.model.presets`."""
    config = default_config()
    config.data.source = "text"
    config.data.valid = ""
    config.data.test = ""
    config.data.buckets = 1
    config.data.noise_ratio = 0.3
    config.data.noise_span = 3.0
    config.data.noise_hidden = 0.5

    config.model.update(dataclasses.asdict(PRESETS[architecture]))
    config.model.vocab_size = 0  # the tokenizer's

    config.objective.name = "janus"
    config.objective.label_smoothing = 0.0
    config.objective.normalize_by = "target"
    config.objective.weights.ar = 0.5
    config.objective.weights.nar = 0.5
    config.objective.weights.aux = 0.5
    config.objective.weights.length = 0.0
    config.objective.weights.kl_ar_nar = 0.0
    config.objective.weights.kl_nar_aux = 0.5
    config.objective.weights.kl_ar_aux = 0.5

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "polynomial"
    config.optimizer.warmup_steps = 10_000
    config.optimizer.warmup_init = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01

    config.train.eval_sentences = 0
    return config


def _released(architecture):
    config = pretraining(architecture)
    config.text.model_type = "byte_bpe"
    config.text.vocab_size = 50_265

    config.data.train = "corpus/*"
    config.data.hold_out = 10_000
    config.data.prepared = "prepared/bart_janus"
    config.data.max_source_length = 512
    config.data.max_target_length = 512
    config.data.tokens_per_batch = 8 * 3 * 512

    config.model.remat = "dots"

    config.objective.projection_rows = 4096

    config.train.steps = 1_000_000
    config.train.accumulation = 16
    config.train.eval_every = 5000
    config.train.checkpoint_every = 5000
    return config


def get_config(name="base"):
    """The preset named after the colon of --config=configs/bart_janus.py:base."""
    return preset(name, {"base": lambda: _released("bart_base"), "large": lambda: _released("bart_large")})
