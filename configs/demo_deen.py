"""The built-in corpus: German dates, times, numbers, units and lists to English. ./launch/quickstart.sh trains it.

    python -m janus_jax.data --config=configs/demo_deen.py
    python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen

Presets:
  ctc    AR and CTC (the default)
  masks  AR and mask-predict with AUX rows, the loss of the paper, on sentences of at most 16 tokens

Cost: minutes on two CPU cores; ctc 3200 steps of at most 512 tokens, masks 600 steps of at most 1024.
Scores: ./launch/quickstart.sh prints those of ctc, notebooks/quickstart.ipynb those of masks.
"""

from configs import recipes
from janus_jax.config import default_config, preset


def _demo():
    """One size, chosen so that two CPU cores learn it in minutes."""
    config = default_config()
    config.text.model_type = "bpe"
    config.text.vocab_size = 1400
    config.text.character_coverage = 1.0

    config.data.source = "demo"
    config.data.prepared = "prepared/demo_deen"
    config.data.max_source_length = 64
    config.data.max_target_length = 64
    config.data.buckets = 3

    config.model.d_model = 128
    config.model.ffn_dim = 512
    config.model.heads = 4
    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.model.max_positions = 64
    config.model.length_classes = 64
    config.model.dropout = 0.0
    config.model.norm = "pre"

    config.objective.label_smoothing = 0.0  # the source determines the target

    config.optimizer.schedule = "cosine"

    config.train.log_every = 50
    config.train.eval_sentences = 0  # the test split is decoded afterwards
    return config


def _steps(config, count, *, warmup, rate):
    config.optimizer.learning_rate = rate
    config.optimizer.warmup_steps = warmup

    config.train.steps = count
    config.train.eval_every = count
    config.train.checkpoint_every = count // 2
    return config


def _ctc():
    config = recipes.ctc(_demo())
    config.data.tokens_per_batch = 512
    config.model.max_positions = 128  # two CTC rows a source token
    # AR alone learns where in the source to look, in cheap steps. CTC starts from there.
    config.objective.ar_first = 0.4
    return _steps(config, 3200, warmup=250, rate=2e-3)


def _masks():
    config = _demo()
    # 93% of the sentences are as short. They are learned sooner, and one program for one shape is compiled sooner.
    config.data.prepared = "prepared/demo_short"
    config.data.max_source_length = 16
    config.data.max_target_length = 16
    config.data.buckets = 1
    config.data.tokens_per_batch = 1024

    config.objective.weights.length = 1.0
    config.objective.ar_first = 0.3
    # Light divergences: AR has learned what the other rows only begin to learn, and should keep it.
    config.objective.weights.kl_ar_nar = 0.5
    config.objective.weights.kl_nar_aux = 0.5
    config.objective.weights.kl_ar_aux = 1.0
    return _steps(config, 600, warmup=150, rate=3e-3)


def get_config(name="ctc"):
    """The preset named after the colon of --config=configs/demo_deen.py:masks."""
    return preset(name, {"ctc": _ctc, "masks": _masks})
