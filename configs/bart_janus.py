"""BART-JANUS pretraining: a BART learns to generate non-autoregressively too, by denoising (the released recipe).

    python -m janus_jax.data --config=configs/bart_janus.py:base --config.data.train='corpus/*.txt.gz' --config.init_from=runs/bart_base
    python -m janus_jax.train --config=configs/bart_janus.py:base --config.data.train='corpus/*.txt.gz' --config.init_from=runs/bart_base --workdir=runs/bart_janus

`runs/bart_base` is an imported BART (README, "Bring a BART"); its tokenizer cuts the text. Without `init_from` a byte-level BPE
tokenizer is trained, and the model from scratch.

Presets: base, large. The released recipe is 8 GPUs x 3 x 512 tokens x 16 micro-batches a step, at most a million steps, "16 GPU
days"; batches are global here, so that any mesh trains the same. Scores: not measured.
"""

import dataclasses

from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS


def pretraining(architecture):
    """The objective, noise and optimizer of the released pretraining for one of `janus_jax.model.presets`."""
    config = default_config()
    config.model.update(dataclasses.asdict(PRESETS[architecture]))
    config.model.vocab_size = 0  # the tokenizer's
    d = config.data
    d.source, d.valid, d.test, d.buckets = "text", "", "", 1
    d.noise_ratio, d.noise_span, d.noise_hidden = 0.3, 3.0, 0.5
    o = config.objective
    o.name, o.label_smoothing, o.normalize_by = "janus", 0.0, "target"
    o.weights.ar = o.weights.nar = o.weights.aux = 0.5
    o.weights.kl_nar_aux = o.weights.kl_ar_aux = 0.5
    o.weights.kl_ar_nar = o.weights.length = 0.0
    a = config.optimizer
    a.name, a.b1, a.b2, a.eps, a.weight_decay = "adamw", 0.9, 0.98, 1e-6, 0.01
    a.learning_rate, a.schedule, a.warmup_steps, a.warmup_init = 1e-4, "polynomial", 10_000, 0.0
    config.train.eval_sentences = 0
    return config


def _released(architecture):
    config = pretraining(architecture)
    config.text.model_type, config.text.vocab_size = "byte_bpe", 50_265
    d = config.data
    d.train, d.hold_out, d.prepared = "corpus/*", 10_000, "prepared/bart_janus"
    d.max_source_length = d.max_target_length = 512
    d.tokens_per_batch = 8 * 3 * 512
    config.model.remat = "dots"
    config.objective.projection_rows = 4096
    t = config.train
    t.accumulation, t.steps, t.eval_every, t.checkpoint_every = 16, 1_000_000, 5000, 5000
    return config


def get_config(arg="base"):
    """The preset named after the colon of --config=configs/bart_janus.py:base."""
    return preset(arg, {"base": lambda: _released("bart_base"), "large": lambda: _released("bart_large")})
