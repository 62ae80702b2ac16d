"""Your own parallel text. Change the lines under "Your text", or copy this file. docs/own_data.md goes through it.

    python -m janus_jax.data --config=configs/mine.py
    python -m janus_jax.train --config=configs/mine.py --workdir=runs/mine

Presets:
  ctc    AR alone for half of the steps, then AR and CTC (the default)
  masks  AR alone for a third of the steps, then the loss of the paper: AR, mask-predict and AUX
  ar     AR alone: to compare with, or to make distilled targets

Data: my/train.es and my/train.en, a sentence a line; the same for my/dev and my/test. Without text of your own, the first
command with --write_sample writes Spanish-English phrases there, and goes on.

Cost: for 29,000 short sentence pairs about 40 minutes on two CPU cores (ctc, by the step times of multi30k_deen.py:cpu).
Scores: those of your text; docs/recipes.md has figures for others.
"""

from configs import recipes
from janus_jax.config import default_config, preset


def _mine():
    config = default_config()

    # Your text.
    config.data.source = "parallel"  # two files, a sentence a line; "tsv": one file, source TAB target in each line
    config.data.source_lang = "es"
    config.data.target_lang = "en"
    config.data.train = "my/train"  # my/train.es and my/train.en; for "tsv" the file's name, as my/train.tsv
    config.data.valid = "my/dev"
    config.data.test = "my/test"  # may be "": training does not need it
    config.data.prepared = "prepared/mine"  # the result of janus_jax.data
    config.data.max_source_length = 128  # tokens; longer pairs are left out
    config.data.max_target_length = 128

    # Size of the vocabulary, for both languages together. A text too small for it gets fewer, with a warning.
    config.text.vocab_size = 4000

    # Size of the model: 4 million parameters. d_model 512, ffn_dim 2048, 6+6 layers is the usual size on a GPU.
    config.model.d_model = 192
    config.model.ffn_dim = 768
    config.model.heads = 4
    config.model.encoder_layers = 3
    config.model.decoder_layers = 3
    config.model.dropout = 0.2
    config.model.max_positions = 256  # at least max_source_length x ctc_ratio

    # How long, and how fast.
    config.data.tokens_per_batch = 1536  # 4096 or more for larger texts
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 300
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.998
    config.train.steps = 6000
    config.train.log_every = 100
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    return config


def _ar():
    config = _mine()
    config.model.ar_stream = "content"

    config.objective.name = "ar"
    return config


def get_config(name="ctc"):
    """The preset named after the colon of --config=configs/mine.py:masks."""
    presets = {"ctc": lambda: recipes.ar_then_ctc(_mine()), "masks": lambda: recipes.ar_first(_mine()), "ar": _ar}
    return preset(name, presets)
