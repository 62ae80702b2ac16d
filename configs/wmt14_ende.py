"""WMT14 English-German at the released size.

    python -m janus_jax.data --config=configs/wmt14_ende.py --download
    python -m janus_jax.train --config=configs/wmt14_ende.py --workdir=runs/wmt14_ende

The text comes from TFDS, which needs TensorFlow to make this dataset (`pip install tensorflow`). Parallel files need nothing:
--config.data.source=parallel --config.data.train=DIR/train --config.data.valid=DIR/valid --config.data.test=DIR/test
for both commands, prefixes of DIR/train.en, DIR/train.de and so on.

Presets:
  base      the released sizes and optimizer; AR first, then the joint loss with AR as the teacher (configs/recipes.py)
  ctc       so too, with CTC rows instead of mask-predict
  released  the released recipe, its AR slot positions and its two encoder passes

Cost: 4 x 32,768 tokens a step, for several accelerators; not measured here. Vocabulary size (32,000) and number of steps (200,000, as
for IWSLT14) are ours: the recipe names neither. Scores: not measured yet.
"""

from configs import released


def _released():
    return released.tfds(released.wmt(dropout=0.2, accumulation=4), "wmt14_translate/de-en", "en", "de")


def get_config(arg="base"):
    """The preset named after the colon of --config."""
    return released.presets(arg, _released)
