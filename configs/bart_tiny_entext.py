"""BART-JANUS pretraining in small: denoising of plain English text on two CPU cores.

    python -m janus_jax.data --config=configs/bart_tiny_entext.py
    python -m janus_jax.train --config=configs/bart_tiny_entext.py --workdir=runs/bart_tiny

Data: data/entext.txt.xz, plain text, a paragraph or document a line. --config.data.train names another file or a pattern of
files. configs/bart_tiny_tasks.py fine-tunes the result.

Cost: 7000 steps on 33.3M tokens, 2 hours 45 minutes of two cores, 3 GB. Scores, validation NLL per token: AR 0.82, NAR
3.71, AUX 2.95.
"""

from configs import bart_janus


def get_config():
    """The pretraining recipe with a small model, blocks of 128 tokens and a short run."""
    config = bart_janus.pretraining("bart_tiny")
    config.text.model_type = "byte_bpe"
    config.text.vocab_size = 6000
    config.text.train_lines = 100_000

    config.data.train = "data/entext.txt.xz"
    config.data.hold_out = 1000
    config.data.prepared = "prepared/bart_tiny_entext"
    config.data.max_source_length = 128
    config.data.max_target_length = 128
    config.data.tokens_per_batch = 24 * 128

    config.objective.projection_rows = 1024

    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0

    config.train.steps = 7000
    config.train.accumulation = 1
    config.train.log_every = 25
    config.train.eval_every = 1000
    config.train.checkpoint_every = 250
    return config
