"""BART-JANUS pretraining in small: denoising of plain English text on two CPU cores.

    python -m janus_jax.data --config=configs/bart_tiny_entext.py --config.data.train=CORPUS.txt.xz
    python -m janus_jax.train --config=configs/bart_tiny_entext.py --config.data.train=CORPUS.txt.xz --workdir=runs/bart_tiny

The corpus is plain text, a paragraph or document a line, in files that a pattern may name. `configs/headline.py` fine-tunes
what comes out.

Cost: 2600 steps, 55 minutes of one core, 3 GB. Validation NLL per token: AR 2.64, NAR 5.23, AUX 4.35.
"""

from configs import bart_janus

FILE = "../shared/data/entext.txt.xz"


def get_config():
    """The pretraining recipe with a small model, blocks of 128 tokens and a short run."""
    config = bart_janus.pretraining("bart_tiny")
    config.text.model_type, config.text.vocab_size, config.text.train_lines = "byte_bpe", 6000, 100_000
    d = config.data
    d.train, d.hold_out, d.prepared = FILE, 1000, "prepared/bart_tiny_entext"
    d.max_source_length = d.max_target_length = 128
    d.tokens_per_batch = 24 * 128
    config.objective.projection_rows = 1024
    o = config.optimizer
    o.learning_rate, o.warmup_steps, o.clip_norm = 1.5e-3, 200, 1.0
    t = config.train
    t.steps, t.accumulation, t.log_every, t.eval_every, t.checkpoint_every = 2600, 1, 50, 520, 260
    return config
