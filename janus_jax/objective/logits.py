"""Vocabulary logits of chunks of rows, so that few rows' logits live at once, on one device or a mesh.

Legend: B sentences, X rows a sentence, c chunks, W parts of a batch (data x fsdp), D model width, V' padded vocabulary.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax import parallel
from janus_jax.config import ModelConfig
from janus_jax.model import constrain_logits, project
from janus_jax.parallel import BATCH, constrain


def chunks_of(rows: int, limit: int) -> int:
    """c, a power of two that leaves each part of the mesh about `limit` of its share of `rows` rows at once; 1 where `limit` is 0."""
    rows //= parallel.batch_ways()
    return 1 if not limit or rows <= limit else 1 << math.ceil(math.log2(rows / limit))


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


def copies(table: jax.Array, sentences: int) -> jax.Array:
    """The token table [V', D] as a loss over `sentences` reads it: one copy a part of the batch, [W, V', D], on its devices.

    Each part then adds up its own gradient, over chunks and over all that reads the table, and the parts meet once. Of one
    table the compiler would sum every chunk's gradient over all devices, or gather the rows of a batch. Without a mesh, and
    where the parts don't divide the sentences, the table itself.
    """
    ways = parallel.batch_ways()
    table = constrain(table, "tensor", None)
    if ways == 1 or sentences % ways:
        return table
    return on_own_parts(jnp.broadcast_to(table, (ways, *table.shape)))


def on_own_parts(tables: jax.Array) -> jax.Array:
    """`copies`, or their gradient, pinned to the devices of their parts."""
    return constrain(tables, BATCH, "tensor", None) if tables.ndim == 3 else tables


def logits_of(rows: jax.Array, tables: jax.Array, model: ModelConfig, dtype: Any, blank: bool = False) -> jax.Array:
    """`model.project` of rows [X, D] with `copies` of the table, each row with the copy of its part: [X, V'] float32."""
    if tables.ndim == 2:
        return constrain_logits(project(rows, tables, model, dtype, blank))
    parts = rows.reshape(tables.shape[0], -1, rows.shape[-1])
    logits = jax.vmap(partial(project, config=model, dtype=dtype, blank=blank))(parts, tables)
    return constrain_logits(constrain(logits, BATCH, None, "tensor").reshape(-1, logits.shape[-1]))
