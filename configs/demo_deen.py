"""The built-in corpus: German dates, times, numbers, units and lists to English. ./launch/quickstart.sh trains it.

    python -m janus_jax.data --config=configs/demo_deen.py
    python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen

Cost: 1150 steps, minutes on two CPU cores. Scores: ./launch/quickstart.sh prints them.
"""

from janus_jax.config import default_config


def get_config():
    """One size, chosen so that two CPU cores learn it in minutes."""
    config = default_config()
    config.text.model_type = "bpe"
    config.text.vocab_size = 1400
    config.text.character_coverage = 1.0

    config.data.source = "demo"
    config.data.prepared = "prepared/demo_deen"
    config.data.max_source_length = 64
    config.data.max_target_length = 64
    config.data.tokens_per_batch = 2048
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

    # No label smoothing: the source determines the target.
    config.objective.label_smoothing = 0.0
    config.objective.weights.length = 0.3
    # The divergences start once there is something to match.
    config.objective.weights.kl_ar_nar = ((400, 0.0), (900, 1.0))
    config.objective.weights.kl_nar_aux = ((400, 0.0), (900, 1.0))
    config.objective.weights.kl_ar_aux = ((400, 0.0), (900, 3.0))

    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 150

    config.train.steps = 1150
    config.train.log_every = 50
    config.train.eval_every = 1150
    config.train.checkpoint_every = 575
    config.train.eval_sentences = 0  # the test split is decoded afterwards
    return config
