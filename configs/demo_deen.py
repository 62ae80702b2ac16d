"""The built-in corpus: German dates, times, numbers, units and lists to English; what ./launch/quickstart.sh trains.

python -m janus_jax.data --config=configs/demo_deen.py
python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen
"""

from janus_jax.config import default_config


def get_config():
    """One size, chosen so that two CPU cores learn it in minutes."""
    config = default_config()
    config.text.model_type, config.text.vocab_size, config.text.character_coverage = "bpe", 1400, 1.0
    config.data.source = "demo"
    config.data.prepared = "prepared/demo_deen"
    config.data.max_source_length = config.data.max_target_length = 64
    config.data.tokens_per_batch = 2048
    config.data.buckets = 3
    m = config.model
    m.d_model, m.ffn_dim, m.heads, m.encoder_layers, m.decoder_layers = 128, 512, 4, 2, 2
    m.max_positions, m.length_classes, m.dropout, m.norm = 64, 64, 0.0, "pre"
    # No label smoothing: the target follows from the source. The divergences come in once there is something to match.
    config.objective.label_smoothing = 0.0
    for term, weight in (("kl_ar_nar", 1.0), ("kl_nar_aux", 1.0), ("kl_ar_aux", 3.0)):
        config.objective.weights[term] = ((400, 0.0), (900, weight))
    config.objective.weights.length = 0.3
    o = config.optimizer
    o.learning_rate, o.warmup_steps, o.schedule = 3e-3, 150, "cosine"
    t = config.train
    t.steps, t.log_every, t.eval_every, t.checkpoint_every = 1150, 50, 1150, 575
    t.eval_sentences = 0  # the test split is decoded afterwards
    return config
