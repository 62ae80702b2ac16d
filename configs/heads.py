"""Draft heads for a finished model: the same output as greedy search, faster. Nothing else of the model changes.

    python -m janus_jax.data --config=configs/multi30k_deen.py:ar
    python -m janus_jax.train --config=configs/multi30k_deen.py:ar --workdir=runs/multi30k_ar
    python -m janus_jax.train --config=configs/heads.py --config.init_from=runs/multi30k_ar \\
        --config.data.prepared=prepared/multi30k_ar --workdir=runs/multi30k_heads
    python -m janus_jax.decode --checkpoint=runs/multi30k_heads --mode=speculative --input=data/multi30k/test_2016_flickr.de

Model, objective and decoding settings are those of init_from, but the mode becomes speculative, which is greedy search. (The
mode of init_from stays if it has several outputs a line, or forbids repeated n-grams.) For its beam search decode with --mode=ar --beam=5.
The steps compute only what the heads read and their loss.

Data: a prepared set with the model's tokenizer, best that of its training. For other text,
`python -m janus_jax.data --config=configs/heads.py` takes the settings of data.* and text.model on its command line.

Cost: two CPU cores, with validation and compiling: 3 minutes for multi30k_deen.py:cpu, 13.5 for multi30k_deen.py:large.
Scores: those of the model that it starts from; docs/speed.md has the speed.
"""

from janus_jax.config import default_config


def get_config():
    """Four heads on the AR half of `init_from`."""
    config = default_config()
    config.init_from = "runs/multi30k_ar"
    config.data.prepared = "prepared/multi30k_ar"
    config.data.tokens_per_batch = 768

    config.model.draft_heads = 4
    config.model.dropout = 0.0  # the AR rows that the heads read are then those of decoding

    config.objective.name = "ar"  # until that of init_from takes its place
    config.objective.weights.heads = 1.0
    config.objective.projection_rows = 1024

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.0

    config.train.only = "heads"
    config.train.steps = 1200
    config.train.log_every = 100
    config.train.eval_every = 600
    config.train.eval_sentences = 0
    config.train.checkpoint_every = 300
    config.decode.mode = "speculative"
    return config
