"""Tiny experiments on a tiny dataset."""

from janus_jax.config import leaves, resolve
from janus_jax.train import evaluation, loop
from janus_jax.train.workdir import FREE_SETTINGS


def config(prepared, **changes):
    """A run of 12 steps of a one-layer model with dropout on; `changes` are dotted settings with __ for dots."""
    settings = {
        "text": {"vocab_size": 120, "byte_fallback": False, "character_coverage": 1.0},
        "data": {
            "source": "demo", "demo_sizes": (300, 24, 24), "prepared": str(prepared), "buckets": 1,
            "tokens_per_batch": 1024, "max_source_length": 64, "max_target_length": 64,
        },
        "model": {
            "d_model": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "max_positions": 64,
            "length_classes": 64, "dropout": 0.1, "dtype": "float32",
        },
        "optimizer": {"warmup_steps": 4, "learning_rate": 1e-3, "ema_decay": 0.9},
        "train": {"steps": 12, "log_every": 2, "eval_every": 6, "checkpoint_every": 3, "eval_sentences": 0},
    }  # fmt: skip
    for name, value in changes.items():
        node = settings
        *path, last = name.split("__")
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return resolve(settings)


def share_compiled_steps(patch):
    """Lets runs of equal settings in one process share their step functions, which JAX then traces and compiles once.

    Args:
      patch: a MonkeyPatch.
    """
    for module, name in ((loop, "jit_train_step"), (evaluation, "jit_eval_step")):
        patch.setattr(module, name, _shared(getattr(module, name)))


def _shared(jit_step):
    functions = {}

    def shared(net, config, mesh, *rest):
        settings = tuple(leaf for leaf in leaves(config) if leaf[0] not in FREE_SETTINGS - {"train.steps"})
        _, *terms = rest or (None,)  # the shardings follow from the other arguments
        key = repr((net.config, net.specials, settings, terms)), mesh
        if key not in functions:
            functions[key] = jit_step(net, config, mesh, *rest)
        return functions[key]

    return shared
