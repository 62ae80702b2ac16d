"""Rows cut into chunks, so that few rows' logits live at once.

Legend: B sentences, X rows a sentence, c chunks.
"""

import math

import jax
import jax.numpy as jnp

from janus_jax import parallel


def chunks_of(rows: int, most: int) -> int:
    """c, a power of two that leaves about `most` of `rows` rows at once; 1 where `most` is 0."""
    return 1 if not most or rows <= most else 1 << math.ceil(math.log2(rows / most))


def cut(x: jax.Array, chunks: int, fill: int) -> jax.Array:
    """[B, X, ...] -> [c, B * X / c, ...], X padded with `fill` where c does not divide the rows.

    A chunk takes every c-th row, so that rows of a batch that is split over devices stay where they are.
    """
    unit = chunks // math.gcd(chunks, max(x.shape[0] // parallel.batch_ways(), 1))
    width = [(0, 0), (0, -x.shape[1] % unit)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, width, constant_values=fill)
    return jnp.moveaxis(x.reshape(-1, chunks, *x.shape[2:]), 1, 0)


def joined(parts: jax.Array, sentences: int, rows: int) -> jax.Array:
    """What `cut` took apart, [c, B * X / c] -> [B, X]."""
    return jnp.moveaxis(parts, 0, 1).reshape(sentences, -1)[:, :rows]
