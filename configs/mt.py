"""Machine translation at the released sizes: IWSLT14 German-English, WMT14 English-German, WMT16 English-Romanian.

    python -m janus_jax.data --config=configs/mt.py:wmt16_enro --download
    python -m janus_jax.train --config=configs/mt.py:wmt16_enro --workdir=runs/wmt16_enro

Presets:
  iwslt14_deen             German-English, 160,000 sentences of talks
  wmt14_ende, wmt14_deen   English-German and German-English
  wmt16_enro, wmt16_roen   English-Romanian and Romanian-English

  Each has the released sizes and optimizer, and trains AR first, then AR and CTC (configs/recipes.py). Two variants of
  each, for example wmt16_enro_masks and wmt16_enro_released:
  _masks                   AR first, then the joint loss with mask-predict, in which AR is the teacher
  _released                the released recipe, with its AR slot positions and its two encoder passes

Data: IWSLT14 is read from parallel files, a sentence a line: data/iwslt14/train.de, train.en, valid.de, valid.en, test.de
and test.en, which `python -m janus_jax.data.translation` makes from the download (launch/reproduce.sh goes the whole way,
for WMT too). WMT comes from TFDS, which needs TensorFlow to make these datasets (`pip install tensorflow`). Other parallel
files, DIR/train.en, DIR/train.de and so on, are read with the same settings for both commands:
--config.data.source=parallel --config.data.train=DIR/train --config.data.valid=DIR/valid --config.data.test=DIR/test

Cost: 200,000 steps; IWSLT14 8192 tokens a step, WMT 32,768 (wmt14_ende 4 x 32,768), for several accelerators. Batch sizes
are those of all devices of the released runs together, since batches are global here: a mesh of up to 8 devices trains the
same (docs/scaling.md has the flags for more). The recipe names neither the vocabulary size of WMT (32,000) nor its steps
(200,000, as for IWSLT14): they are our choice.

Scores: not measured yet. The released code's own figures for IWSLT14, tokenised BLEU: AR 37.24 (beam 5), NAR 34.21
(11 passes, length beam 3).
"""

import functools

from configs import recipes
from janus_jax.config import default_config, preset


def _iwslt14_deen():
    """The released IWSLT14 recipe: 2 x 4096 tokens a step."""
    config = default_config()
    config.text.vocab_size = 10_000

    config.data.source = "parallel"
    config.data.source_lang = "de"
    config.data.target_lang = "en"
    config.data.train = "data/iwslt14/train"
    config.data.valid = "data/iwslt14/valid"
    config.data.test = "data/iwslt14/test"
    config.data.prepared = "prepared/iwslt14_deen"
    config.data.tokens_per_batch = 2 * 4096
    config.data.buckets = 6

    config.model.d_model = 512
    config.model.ffn_dim = 1024
    config.model.heads = 4
    config.model.encoder_layers = 6
    config.model.decoder_layers = 6
    config.model.dropout = 0.3

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.warmup_steps = 10_000
    config.optimizer.warmup_init = 1e-7
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_all = True
    config.optimizer.clip_norm = 0.0

    config.train.steps = 200_000
    config.train.eval_every = 2000
    config.train.checkpoint_every = 2000

    config.decode.nar.passes = 11
    return config


def _wmt(year, tfds_name, source, target, dropout, accumulation=1):
    """The released WMT recipe: what differs from IWSLT14. 4 x 8192 tokens a micro-batch."""
    config = _iwslt14_deen()
    config.text.vocab_size = 32_000

    config.data.source = "tfds"
    config.data.tfds_name = tfds_name
    config.data.source_lang = source
    config.data.target_lang = target
    config.data.train = "train"
    config.data.valid = "validation"
    config.data.test = "test"
    config.data.prepared = f"prepared/wmt{year}_{source}{target}"
    config.data.tokens_per_batch = 4 * 8192
    config.data.buckets = 8

    config.model.ffn_dim = 2048
    config.model.heads = 8
    config.model.dropout = dropout

    config.optimizer.learning_rate = 7e-4
    config.optimizer.weight_decay = 0.01

    config.train.accumulation = accumulation

    config.decode.nar.passes = 10
    return config


PAIRS = {
    "iwslt14_deen": _iwslt14_deen,
    "wmt14_ende": lambda: _wmt(14, "wmt14_translate/de-en", "en", "de", dropout=0.2, accumulation=4),
    "wmt14_deen": lambda: _wmt(14, "wmt14_translate/de-en", "de", "en", dropout=0.2),
    "wmt16_enro": lambda: _wmt(16, "wmt16_translate/ro-en", "en", "ro", dropout=0.3),
    "wmt16_roen": lambda: _wmt(16, "wmt16_translate/ro-en", "ro", "en", dropout=0.3),
}


def _ctc(pair):
    return recipes.ar_then_ctc(pair())


def _masks(pair):
    return recipes.ar_first(pair())


def _released(pair):
    # The loss of the released code needs no change; its architecture differs from our default here.
    config = pair()
    config.model.ar_slot_position = "input"
    config.objective.encoder_passes = 2
    return config


def get_config(name=""):
    """The preset named after the colon of --config=configs/mt.py:wmt16_enro."""
    presets = {}
    for pair, make in PAIRS.items():
        presets[pair] = functools.partial(_ctc, make)
        presets[f"{pair}_masks"] = functools.partial(_masks, make)
        presets[f"{pair}_released"] = functools.partial(_released, make)
    return preset(name, presets)
