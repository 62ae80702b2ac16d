"""The released code's recipes, which the IWSLT14 and WMT experiments share. Not an experiment itself.

Batch sizes are those of all its devices together, since ours are global: a mesh of any size trains the same.
"""

from configs import recipes
from janus_jax.config import default_config, preset


def iwslt14():
    """d_model 512, ffn 1024, 4 heads, 6+6 layers; 2 x 4096 tokens a step, 200,000 steps."""
    config = default_config()
    m = config.model
    m.d_model, m.ffn_dim, m.heads, m.encoder_layers, m.decoder_layers, m.dropout = 512, 1024, 4, 6, 6, 0.3
    config.data.tokens_per_batch, config.data.buckets = 2 * 4096, 6
    o = config.optimizer
    o.name, o.learning_rate, o.schedule, o.warmup_steps, o.warmup_init = "adamw", 5e-4, "inverse_sqrt", 10_000, 1e-7
    o.b1, o.b2, o.weight_decay, o.decay_all, o.clip_norm = 0.9, 0.98, 1e-4, True, 0.0
    t = config.train
    t.steps, t.eval_every, t.checkpoint_every = 200_000, 2000, 2000
    return config


def wmt(dropout, accumulation=1):
    """ffn 2048, 8 heads; 4 x 8192 tokens a micro-batch; warm-up and steps as for IWSLT14."""
    config = iwslt14()
    config.model.ffn_dim, config.model.heads, config.model.dropout = 2048, 8, dropout
    config.optimizer.learning_rate, config.optimizer.weight_decay = 7e-4, 0.01
    config.data.tokens_per_batch, config.data.buckets = 4 * 8192, 8
    config.train.accumulation = accumulation
    config.text.vocab_size = 32_000
    return config


def with_its_rules(config):
    """Also what the released code does otherwise than ours: AR slots at the input's position, two encoder passes."""
    config.model.ar_slot_position = "input"
    config.objective.encoder_passes = 2
    return config


def tfds(config, name, source_lang, target_lang):
    """Takes the text from a TFDS translation dataset; prepared by name of the pair."""
    d = config.data
    d.source, d.tfds_name, d.source_lang, d.target_lang = "tfds", name, source_lang, target_lang
    d.train, d.valid, d.test = "train", "validation", "test"
    d.prepared = f"prepared/{name.split('_')[0]}_{source_lang}{target_lang}"
    return config


def presets(arg, make):
    """The preset `arg` of an experiment whose released sizes and optimizer `make` gives."""
    return preset(
        arg,
        {
            "base": lambda: recipes.ar_first(make()),
            "ctc": lambda: recipes.ar_first(recipes.ctc(make())),
            "released": lambda: with_its_rules(make()),
        },
    )
