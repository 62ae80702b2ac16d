"""Tiny experiments on a tiny dataset."""

import importlib

import jax

from janus_jax.config import leaves, resolve, scheduled
from janus_jax.train import evaluation, loop

dry_run = importlib.import_module("janus_jax.train.dry_run")  # the package exports a function of that name


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


def hurry(patch):
    """Lets runs of equal settings in this process share what JAX traces and compiles, and draws no curves.

    Args:
      patch: a MonkeyPatch.
    """
    for module, name in (
        (loop, "abstract_state"), (loop, "jit_init_state"), (loop, "jit_train_step"), (evaluation, "jit_eval_step"),
        (dry_run, "abstract_state"), (dry_run, "jit_train_step"),
    ):  # fmt: skip
        patch.setattr(module, name, _shared(name, getattr(module, name)))
    patch.setattr(loop, "plot_curves", lambda workdir: None)


_FUNCTIONS = {}


def _shared(name, function):
    """`function(net, config, mesh or shardings, ...)`, called once for each model, mesh and settings that it reads."""

    def shared(net, config, place, *rest):
        mesh = place if isinstance(place, jax.sharding.Mesh) else jax.tree.leaves(place)[0].mesh
        _, *terms = rest or (None,)  # the shardings follow from the other arguments
        key = name, mesh, repr((net.config, net.specials, _settings(config), terms))
        if key not in _FUNCTIONS:
            _FUNCTIONS[key] = function(net, config, place, *rest)
        return _FUNCTIONS[key]

    return shared


def _settings(config):
    """The settings that steps read, beside those of the model."""
    objective, train = scheduled(config), config.train
    scheduled_weights = any(isinstance(value, tuple) for _, value in leaves(objective))
    constant = config.optimizer.schedule in ("constant", "inverse_sqrt") and not scheduled_weights
    return objective, config.optimizer, train.seed, train.only, train.deterministic, None if constant else train.steps
