"""Multi30k German-English (29,000 image captions), the smallest real translation task.

    python -m janus_jax.data --config=configs/multi30k_deen.py:cpu
    python -m janus_jax.train --config=configs/multi30k_deen.py:cpu --workdir=runs/multi30k_cpu
    python -m janus_jax.evaluate --checkpoint=runs/multi30k_cpu --source=TEST.de --references=TEST.en

The text is parallel files, a sentence a line: `data.train`, `data.valid` and `data.test` are their prefixes, for example
--config.data.train=/data/multi30k/train for /data/multi30k/train.de and train.en.

Presets:
  cpu           AR first, then jointly, on two CPU cores (configs/recipes.py): 39 minutes, 2400 steps of 2770 target tokens, at
                most 7.8 GB of memory
  ctc           so large too, AR and CTC
  joint         so large too, jointly from the first step, AR as the teacher: 36 minutes, 1500 steps, at most 9.8 GB of memory
  released      as joint, but nothing fixed, as the released code trains
  base          the released IWSLT14 architecture, AR first, for one accelerator
  study         the cells of benchmarks/study.py start from it: 128 wide, 3+3 layers, 1200 steps; as it is, the released loss
  anchor_janus, anchor_ar, anchor_cmlm
                1800 updates of the joint, the AR-only and the CMLM-only loss under the released code's rules (AR slots at
                the input's position, two encoder passes, weight decay on everything, no clipping), for comparison with
                that code; they need the SentencePiece model that `text.model` names

Scores of the anchors (sacreBLEU 13a cased, test_2016_flickr, two seeds; the released code trained so in brackets): AR beam 5
17.4, 19.8 (16.2) joint, 29.4, 31.2 (29.7) AR-only; NAR 11 passes, length beam 3 16.2, 16.4 (13.2) joint, 13.6, 13.6 (3.9) CMLM-only. About 35 minutes of one
core joint, 14 AR-only. Scores, AR beam 5 and NAR 10 passes, length beam 3: cpu 37.6, 23.7;
joint 25.2, 21.7; base and ctc not measured yet.
"""

from configs import recipes
from janus_jax.config import default_config, preset

FOLDER = "../shared/data/multi30k"


def _multi30k(name):
    config = default_config()
    d = config.data
    d.source, d.source_lang, d.target_lang = "parallel", "de", "en"
    d.train, d.valid, d.test = f"{FOLDER}/train", f"{FOLDER}/val", f"{FOLDER}/test_2016_flickr"
    d.prepared = f"prepared/multi30k_{name}"
    d.max_source_length = d.max_target_length = 128
    config.model.max_positions = 256
    return config


def _teaching(config):
    # AR teaches NAR and AUX and is not taught by them: in short probes both halves learned faster so.
    config.objective.stop_gradient.kl_ar_nar = config.objective.stop_gradient.kl_ar_aux = "ar"
    return config


def _longer(config):
    # A third of these steps compute AR alone: as many minutes as 1500 joint steps.
    t = config.train
    t.steps, t.eval_every, t.checkpoint_every = 2400, 600, 600
    return config


def _cpu():
    config = _multi30k("cpu")
    config.text.vocab_size = 4000
    config.data.tokens_per_batch = 4096
    config.objective.projection_rows = 1024  # faster than whole batches on a CPU, in less memory
    m = config.model
    m.d_model, m.ffn_dim, m.heads, m.encoder_layers, m.decoder_layers, m.dropout = 192, 768, 4, 3, 3, 0.2
    o = config.optimizer
    o.learning_rate, o.schedule, o.warmup_steps, o.clip_norm = 1e-3, "cosine", 300, 1.0
    t = config.train
    t.steps, t.log_every, t.eval_every, t.checkpoint_every = 1500, 50, 500, 500
    return config


def _base():
    config = _multi30k("base")
    config.text.vocab_size = 8000
    config.data.tokens_per_batch, config.data.buckets = 16_384, 6
    o = config.optimizer
    o.learning_rate, o.schedule, o.warmup_steps, o.clip_norm, o.ema_decay = 5e-4, "cosine", 1000, 1.0, 0.999
    t = config.train
    t.steps, t.eval_every, t.checkpoint_every, t.eval_sentences = 10_000, 1000, 1000, 500
    return recipes.ar_first(config)


def _anchor(objective):
    config = _multi30k("anchor")
    config.text.model = f"{FOLDER}/deen4000.model"
    # 303 updates an epoch, of 96 sentences and 1690 target tokens (bos and eos counted) on average.
    config.data.tokens_per_batch, config.data.buckets = 2304, 5
    m = config.model
    m.d_model, m.ffn_dim, m.heads, m.encoder_layers, m.decoder_layers, m.dropout = 128, 512, 4, 3, 3, 0.2
    m.ar_slot_position, m.dtype = "input", "float32"
    config.objective.name, config.objective.encoder_passes = objective, 2
    if objective == "cmlm":
        config.objective.weights.nar = 1.0
    o = config.optimizer
    o.learning_rate, o.schedule, o.warmup_steps, o.warmup_init = 1e-3, "inverse_sqrt", 500, 1e-7
    o.b1, o.b2, o.eps, o.weight_decay, o.decay_all, o.clip_norm = 0.9, 0.98, 1e-8, 1e-4, True, 0.0
    t = config.train
    t.steps, t.log_every, t.eval_every, t.checkpoint_every = 1800, 50, 600, 600
    config.decode.nar.passes = 11
    return config


def _study():
    config = _multi30k("study")
    config.text.model = f"{FOLDER}/deen4000.model"
    config.data.tokens_per_batch, config.data.buckets = 2304, 4
    config.objective.projection_rows = 1024
    m = config.model
    m.d_model, m.ffn_dim, m.heads, m.encoder_layers, m.decoder_layers, m.dropout = 128, 512, 4, 3, 3, 0.2
    o = config.optimizer
    o.learning_rate, o.schedule, o.warmup_steps, o.clip_norm = 2e-3, "cosine", 300, 1.0
    t = config.train
    t.steps, t.log_every, t.eval_every, t.eval_sentences, t.checkpoint_every = 1200, 50, 300, 0, 300
    t.keep_best = 0
    return config


def get_config(arg="cpu"):
    """The preset named after the colon of --config=configs/multi30k_deen.py:cpu."""
    return preset(
        arg,
        {
            "cpu": lambda: recipes.ar_first(_longer(_cpu())),
            "ctc": lambda: recipes.ar_first(_longer(recipes.ctc(_cpu()))),
            "joint": lambda: _teaching(_cpu()),
            "released": _cpu,
            "base": _base,
            "study": _study,
            "anchor_janus": lambda: _anchor("janus"),
            "anchor_ar": lambda: _anchor("ar"),
            "anchor_cmlm": lambda: _anchor("cmlm"),
        },
    )
