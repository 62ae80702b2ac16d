"""Choosing from vocabulary logits.

Legend: V vocabulary columns (padded).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.types import Array

_BLOCK = 128


def forbid(columns: int, banned: Sequence[int], vocab_size: int) -> np.ndarray:
    """Bias [V] float32 to add to logits: -inf at `banned` ids and from vocab_size on, 0 elsewhere."""
    bias = np.zeros(columns, np.float32)
    bias[list(banned)] = -np.inf
    bias[vocab_size:] = -np.inf
    return bias


def argmax(logits: Array) -> Array:
    """The index [...] int32 of the largest of logits [..., V]; of equals the first.

    In two steps: the best block, then the best of it. Plain maxima compile to vector instructions on a CPU, where
    `jnp.argmax` over a whole vocabulary takes some ten times as long.
    """
    columns = logits.shape[-1]
    if columns % _BLOCK or columns == _BLOCK:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    blocks = logits.reshape(*logits.shape[:-1], columns // _BLOCK, _BLOCK)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    best = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return (block * _BLOCK + jnp.argmax(best, axis=-1)).astype(jnp.int32)


def by_chunks(function: Callable[..., Any], *arrays: Array, chunk: int) -> Any:
    """`function(*arrays)` over the leading axis in pieces of at most `chunk`, so that only the logits of one piece exist at once."""
    count = arrays[0].shape[0]
    pieces = -(-count // chunk)
    if pieces <= 1:
        return function(*arrays)
    size = -(-count // pieces)
    padded = [jnp.pad(x, [(0, pieces * size - count)] + [(0, 0)] * (x.ndim - 1)) for x in arrays]
    parts = lax.map(lambda part: function(*part), tuple(x.reshape(pieces, size, *x.shape[1:]) for x in padded))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], parts)


def log_probs_of(logits: Array, ids: Array) -> Array:
    """log p [...] of ids [...] under logits [..., V]."""
    return jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
