"""The loop of the AR searches, whose cache grows in stages.

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
    state: Any,
    loop: Callable[[Any, Callable[[Any], Array]], Any],
    needed: Callable[[Any], Array],
    limit: int,
    grow_fn: GrowFn | None,
    stages: Sequence[int],
) -> Any:
    """Runs a loop until `state.done` holds everywhere, or `limit` is reached; the cache grows when it is full.

    Args:
      state: of the search, with `done` and `cache`.
      loop: (state, condition) -> the state in which the condition does not hold any more.
      needed: state -> tokens in the cache after the next step.
      limit: most tokens in the cache.
      grow_fn, stages: as in `beam.beam_search`.
    """
    bounds = [s for s in stages if s < limit] if grow_fn else []
    for i, bound in enumerate([*bounds, limit]):
        if i:
            state = replace(state, cache=grow_fn(state.cache, bound))
        state = loop(state, lambda s, bound=bound: (needed(s) <= bound) & ~jnp.all(s.done))
    return state


def put(values: Array, column: Array, step: Array) -> Array:
    """values [..., L] with column [...] at position `step`."""
    return lax.dynamic_update_index_in_dim(values, column.astype(values.dtype), step, axis=values.ndim - 1)
