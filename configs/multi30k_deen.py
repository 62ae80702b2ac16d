"""Multi30k German-English (29,000 image captions), the smallest real translation task.

    python -m janus_jax.data --config=configs/multi30k_deen.py:cpu
    python -m janus_jax.train --config=configs/multi30k_deen.py:cpu --workdir=runs/multi30k_cpu
    python -m janus_jax.evaluate --checkpoint=runs/multi30k_cpu --source=data/multi30k/test_2016_flickr.de --references=data/multi30k/test_2016_flickr.en

Presets:
  cpu        AR first, then AR and CTC, on two CPU cores (configs/recipes.py)
  masks      the same with mask-predict: AR first, then the joint loss with AR weight 10 and one AR stream, in larger batches
  ar         the size of `cpu`, AR alone: a teacher
  ctc_from_ar
             AR and CTC, from the model of `ar`; CTC rows may read distilled targets (docs/data.md)
  masks_from_ar
             the same with mask-predict instead of CTC
  joint      the joint loss from the first step, with AR weight 1 and two AR streams
  released   as joint, but no side of a divergence is fixed; anchor_janus follows the other rules of the released code too
  large      AR alone, six layers of width 512: for configs/heads.py and for figures of speed
  base       the size of the released IWSLT14 model, AR first, then AR and CTC, for one accelerator
  study      the cells of benchmarks/study.py start from it: 128 wide, 3+3 layers, the released loss
  anchor_janus, anchor_ar, anchor_cmlm
             the joint, the AR-only and the CMLM-only loss under the released code's rules (AR slots at the input's position,
             two encoder passes, weight decay on everything, no clipping), for comparison with that code

Data: parallel files in data/multi30k, a sentence a line: train.de, train.en, val.de, val.en, test_2016_flickr.de and
test_2016_flickr.en. --config.data.train, --config.data.valid and --config.data.test name other prefixes, for example
--config.data.train=DIR/train for DIR/train.de and DIR/train.en. The presets study and anchor_* also need the SentencePiece
model data/multi30k/deen4000.model; --config.text.model names another.

Cost: cpu 40 minutes by its step times (3000 x 0.27 s, then 3000 x 0.52 s); masks 39 minutes, 2400 steps of 2770 target tokens,
at most 7.8 GB of memory; joint 36 minutes, 1500 steps, at most 9.8 GB; anchors, 1800 steps, about 35 minutes of one core
joint, 14 AR-only.

Scores (sacreBLEU 13a cased, test_2016_flickr), AR beam 5 and one CTC pass: cpu 39.3, 31.2; ctc_from_ar 40.3, 33.9 (CTC
rows distilled: 39.8, 35.1). AR beam 5 and NAR 10 passes, length beam 3: masks 37.6, 23.7; joint 25.2, 21.7;
masks_from_ar, all distilled, 38.9, 31.2. ar, AR beam 5: 39.1. large, greedy, validation split: 29.6, and 25.7 in a
later run. base not measured yet. Anchors, two seeds, the released code trained the same way in brackets: AR beam 5
17.4, 19.8 (16.2) joint, 29.4, 31.2 (29.7) AR-only; NAR 11 passes, length beam 3 16.2, 16.4 (13.2) joint, 13.6, 13.6
(3.9) CMLM-only.
"""

from configs import recipes
from janus_jax.config import default_config, preset


def _multi30k(name):
    config = default_config()
    config.data.source = "parallel"
    config.data.source_lang = "de"
    config.data.target_lang = "en"
    config.data.train = "data/multi30k/train"
    config.data.valid = "data/multi30k/val"
    config.data.test = "data/multi30k/test_2016_flickr"
    config.data.prepared = f"prepared/multi30k_{name}"
    config.data.max_source_length = 128
    config.data.max_target_length = 128

    config.model.max_positions = 256
    return config


def _released():
    config = _multi30k("masks")
    config.text.vocab_size = 4000

    config.data.tokens_per_batch = 4096

    config.model.d_model = 192
    config.model.ffn_dim = 768
    config.model.heads = 4
    config.model.encoder_layers = 3
    config.model.decoder_layers = 3
    config.model.dropout = 0.2

    config.objective.projection_rows = 1024  # faster than whole batches on a CPU, in less memory

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 300
    config.optimizer.clip_norm = 1.0

    config.train.steps = 1500
    config.train.log_every = 50
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    return config


def _joint():
    config = _released()
    # AR teaches NAR and AUX and is not taught by them: in short probes both halves learned faster that way.
    config.objective.stop_gradient.kl_ar_nar = "ar"
    config.objective.stop_gradient.kl_ar_aux = "ar"
    return config


def _masks():
    config = recipes.ar_first(_released())
    # A third of these steps compute AR alone: as many minutes as 1500 joint steps.
    config.train.steps = 2400
    config.train.eval_every = 600
    config.train.checkpoint_every = 600
    return config


def _small_batches():
    """What the presets with CTC and those of two runs share: batches of a third, for more updates, a moving average."""
    config = _released()
    config.data.prepared = "prepared/multi30k_ar"
    config.data.tokens_per_batch = 1536

    config.optimizer.ema_decay = 0.998

    config.train.log_every = 100
    return config


def _ar():
    config = _small_batches()
    config.model.ar_stream = "content"

    config.objective.name = "ar"

    config.optimizer.warmup_steps = 500

    config.train.steps = 6000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    config.train.best_metric = "valid/nll/ar"
    return config


def _large():
    config = _ar()
    config.data.prepared = "prepared/multi30k_large"
    config.text.vocab_size = 10_000

    config.model.d_model = 512
    config.model.ffn_dim = 1024
    config.model.encoder_layers = 6
    config.model.decoder_layers = 6
    config.model.norm = "pre"  # so many layers learn sooner that way
    config.model.dropout = 0.3

    config.optimizer.warmup_steps = 300

    config.train.steps = 1300
    config.train.eval_every = 325
    config.train.checkpoint_every = 325
    return config


def _cpu():
    config = recipes.ar_then_ctc(_small_batches())
    config.data.prepared = "prepared/multi30k_cpu"

    config.train.steps = 6000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000

    # Of 0, 0.5, ..., 2.5 it and 1.5 are best on the validation split (30.5 BLEU).
    config.decode.ctc.blank_penalty = 1.0
    return config


def _from_ar(config):
    """The second of two runs, from the model of the preset `ar`."""
    config = recipes.from_teacher(config, "runs/multi30k_ar")
    config.train.steps = 3000
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.train.keep_best = 0
    return config


def _base():
    config = _multi30k("base")
    config.text.vocab_size = 8000

    config.data.tokens_per_batch = 16_384
    config.data.buckets = 6

    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 1000
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.999

    config.train.steps = 10_000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    config.train.eval_sentences = 500
    return recipes.ar_then_ctc(config)


def _small(name):
    """What the anchors and the study share: the tokenizer, the batches and the size."""
    config = _multi30k(name)
    config.text.model = "data/multi30k/deen4000.model"

    config.data.tokens_per_batch = 2304

    config.model.d_model = 128
    config.model.ffn_dim = 512
    config.model.heads = 4
    config.model.encoder_layers = 3
    config.model.decoder_layers = 3
    config.model.dropout = 0.2
    return config


def _anchor(objective):
    config = _small("anchor")
    # 303 updates an epoch, of 96 sentences and 1690 target tokens (bos and eos counted) on average.
    config.data.buckets = 5

    config.model.ar_slot_position = "input"
    config.model.dtype = "float32"

    config.objective.name = objective
    config.objective.encoder_passes = 2
    if objective == "cmlm":
        config.objective.weights.nar = 1.0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.warmup_steps = 500
    config.optimizer.warmup_init = 1e-7
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_all = True
    config.optimizer.clip_norm = 0.0

    config.train.steps = 1800
    config.train.log_every = 50
    config.train.eval_every = 600
    config.train.checkpoint_every = 600

    config.decode.nar.passes = 11
    return config


def _study():
    config = _small("study")
    config.data.buckets = 4

    config.objective.projection_rows = 1024

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 300
    config.optimizer.clip_norm = 1.0

    config.train.steps = 1200
    config.train.log_every = 50
    config.train.eval_every = 300
    config.train.eval_sentences = 0
    config.train.checkpoint_every = 300
    config.train.keep_best = 0
    return config


def get_config(name="cpu"):
    """The preset named after the colon of --config=configs/multi30k_deen.py:cpu."""
    presets = {
        "cpu": _cpu,
        "masks": _masks,
        "ar": _ar,
        "large": _large,
        "ctc_from_ar": lambda: _from_ar(recipes.ctc(_small_batches())),
        "masks_from_ar": lambda: _from_ar(recipes.mask_predict(_small_batches())),
        "joint": _joint,
        "released": _released,
        "base": _base,
        "study": _study,
        "anchor_janus": lambda: _anchor("janus"),
        "anchor_ar": lambda: _anchor("ar"),
        "anchor_cmlm": lambda: _anchor("cmlm"),
    }
    return preset(name, presets)
