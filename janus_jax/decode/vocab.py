"""Choosing from vocabulary logits.

Legend: V vocabulary columns (padded).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from janus_jax.types import Array

_BLOCK = 128


def forbid(columns: int, banned: Sequence[int], vocab_size: int) -> np.ndarray:
    """[V] float32 to add to logits: -inf at `banned` ids and from vocab_size on, 0 elsewhere."""
    fixed = np.zeros(columns, np.float32)
    fixed[list(banned)] = -np.inf
    fixed[vocab_size:] = -np.inf
    return fixed


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
