"""The loop of the searches that emit a token at a time; its cache grows in stages.

Legend: N hypotheses of a batch, V vocabulary columns (padded), L longest hypothesis.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from janus_jax.types import Array

Cache = Any
StepFn = Callable[[Array, Cache], tuple[Array, Cache]]  # tokens [N, 1], cache -> logits [N, V] of the next, cache
GrowFn = Callable[[Cache, int], Cache]  # cache, length -> the cache enlarged to `length` tokens


def run_in_stages(
    state: Any, body: Callable[[Any], Any], limit: int, grow_fn: GrowFn | None, stages: Sequence[int]
) -> Any:
    """`body` until `state.done` holds everywhere or `state.step` is `limit`; the cache grows at each of `stages`."""
    bounds = [s for s in stages if s < limit] if grow_fn else []
    for i, bound in enumerate([*bounds, limit]):
        if i:
            state = replace(state, cache=grow_fn(state.cache, bound))
        state = lax.while_loop(lambda s, b=bound: (s.step < b) & ~jnp.all(s.done), body, state)
    return state


def put(values: Array, column: Array, step: Array) -> Array:
    """values [..., L] with column [...] at position `step`."""
    return lax.dynamic_update_index_in_dim(values, column.astype(values.dtype), step, axis=values.ndim - 1)
