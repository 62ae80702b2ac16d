"""IWSLT14 German-English (160,000 sentences of talks) at the released size.

    python -m janus_jax.data --config=configs/iwslt14_deen.py --config.data.train=DIR/train --config.data.valid=DIR/valid --config.data.test=DIR/test
    python -m janus_jax.train --config=configs/iwslt14_deen.py --workdir=runs/iwslt14_deen

The text is parallel files, a sentence a line; the three settings are their prefixes (DIR/train.de, DIR/train.en, ...), and
training is given the same settings as preparation.

Presets:
  base      the released sizes and optimizer; AR first, then the joint loss with AR as the teacher (configs/recipes.py)
  ctc       so too, with CTC rows instead of mask-predict
  released  the released recipe, its AR slot positions and its two encoder passes

Cost: 200,000 steps of 8192 tokens; not measured here. The released code's own figures, tokenised BLEU: AR 37.24 (beam 5),
NAR 34.21 (11 passes, length beam 3). Ours: not measured yet.
"""

from configs import released


def _released():
    config = released.iwslt14()
    config.text.vocab_size = 10_000
    d = config.data
    d.source, d.source_lang, d.target_lang, d.prepared = "parallel", "de", "en", "prepared/iwslt14_deen"
    d.train, d.valid, d.test = "data/iwslt14/train", "data/iwslt14/valid", "data/iwslt14/test"
    config.decode.nar.passes = 11
    return config


def get_config(arg="base"):
    """The preset named after the colon of --config."""
    return released.presets(arg, _released)
