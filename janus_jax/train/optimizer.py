"""Optimizers and learning-rate schedules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from janus_jax.config import OptimizerConfig
from janus_jax.types import Params

Rate = Callable[[jax.Array], jax.Array]


def _inverse_sqrt(c: OptimizerConfig, _steps: int) -> Rate:
    # fairseq's rule: the rate peaks at warmup_steps and then falls with 1 / sqrt(step).
    return lambda step: c.learning_rate * jnp.sqrt(max(c.warmup_steps, 1) / jnp.maximum(step, 1.0))


def _polynomial(c: OptimizerConfig, steps: int) -> Rate:
    return optax.polynomial_schedule(
        c.learning_rate, c.end_learning_rate, c.power, steps - c.warmup_steps, c.warmup_steps
    )


def _cosine(c: OptimizerConfig, steps: int) -> Rate:
    decay = optax.cosine_decay_schedule(
        c.learning_rate, steps - c.warmup_steps, alpha=c.end_learning_rate / c.learning_rate
    )
    return lambda step: decay(step - c.warmup_steps)


def _constant(c: OptimizerConfig, _steps: int) -> Rate:
    return lambda step: jnp.full_like(step, c.learning_rate)


SCHEDULES: dict[str, Callable[[OptimizerConfig, int], Rate]] = {
    "inverse_sqrt": _inverse_sqrt,
    "polynomial": _polynomial,
    "cosine": _cosine,
    "constant": _constant,
}


def learning_rate(c: OptimizerConfig, steps: int) -> Rate:
    """The learning rate by the number of steps done: linear warm-up from warmup_init, then the schedule.

    Args:
      c: optimizer settings.
      steps: length of the run.
    """
    after = SCHEDULES[c.schedule](c, steps)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = c.warmup_init + step * (c.learning_rate - c.warmup_init) / max(c.warmup_steps, 1)
        return jnp.where(step < c.warmup_steps, warm, after(step))

    return rate


def _adam(c: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(c.b1, c.b2, c.eps)


def _adamw(c: OptimizerConfig) -> optax.GradientTransformation:
    mask = None if c.decay_all else _matrices
    return optax.chain(_adam(c), optax.add_decayed_weights(c.weight_decay, mask))


def _matrices(params: Params) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {"adam": _adam, "adamw": _adamw}


def make_optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation of gradients to updates, without the learning rate, which the training step applies.

    Args:
      c: optimizer settings.
    """
    # The state has the same structure with and without clipping, so that a resumed run may change it.
    clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    return optax.chain(clip, OPTIMIZERS[c.name](c))
