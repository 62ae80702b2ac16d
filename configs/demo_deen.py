"""The built-in corpus: German dates, times, numbers, units and lists to English; what ./launch/quickstart.sh trains.

python -m janus_jax.data --config=configs/demo_deen.py
python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen
"""

from janus_jax.config import default_config


def get_config():
    """One size."""
    config = default_config()
    config.text.vocab_size = 2000
    config.data.source = "demo"
    config.data.prepared = "prepared/demo_deen"
    config.data.max_source_length = config.data.max_target_length = 64
    config.data.tokens_per_batch = 2048
    config.data.buckets = 2
    m = config.model
    m.d_model, m.ffn_dim, m.heads, m.encoder_layers, m.decoder_layers = 128, 512, 4, 3, 3
    m.max_positions, m.length_classes, m.dropout = 128, 128, 0.1
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 2e-3, 400
    config.optimizer.schedule = "cosine"
    t = config.train
    t.steps, t.log_every, t.eval_every, t.checkpoint_every = 2000, 100, 1000, 1000
    return config
