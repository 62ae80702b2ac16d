"""Vocabulary logits, computed for one chunk of rows at a time to save memory, on one device or a mesh.

Legend: B sentences, X rows a sentence, N tokens a sentence, c chunks, W parts of a batch (data x fsdp), D model width, V' padded vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax import parallel
from janus_jax.config import ModelConfig
from janus_jax.model import constrain_logits, project
from janus_jax.model.attention import NEGATIVE
from janus_jax.parallel import BATCH, constrain


def chunks_of(rows: int, limit: int) -> int:
    """The number of chunks c of a batch of `rows` rows, a power of two.

    Each part of the batch computes about `limit` rows or fewer at a time. With `limit` 0, c is 1.
    """
    rows //= parallel.batch_ways()
    return 1 if not limit or rows <= limit else 1 << math.ceil(math.log2(rows / limit))


def split_rows(x: jax.Array, chunks: int, fill: int) -> jax.Array:
    """[B, X, ...] -> [c, B * X / c, ...], X padded with `fill` where c does not divide the rows.

    A chunk takes every c-th row. So rows stay on their device if the batch is split over devices.
    """
    unit = chunks // math.gcd(chunks, max(x.shape[0] // parallel.batch_ways(), 1))
    width = [(0, 0), (0, -x.shape[1] % unit)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, width, constant_values=fill)
    return jnp.moveaxis(x.reshape(-1, chunks, *x.shape[2:]), 1, 0)


def merge_rows(parts: jax.Array, sentences: int, rows: int) -> jax.Array:
    """Inverts `split_rows` for one value per row: [c, B * X / c] -> [B, X], with B `sentences` and X `rows`."""
    return jnp.moveaxis(parts, 0, 1).reshape(sentences, -1)[:, :rows]


def map_rows(function: Callable[[jax.Array], jax.Array], hidden: jax.Array, limit: int) -> jax.Array:
    """Applies `function`, [X, D] -> [X], to rows `hidden` [B, R, D], about `limit` rows at a time; gives [B, R]."""
    chunks = chunks_of(hidden.shape[0] * hidden.shape[1], limit)
    if chunks == 1:
        return function(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape[:2])
    # The backward pass computes the logits of each chunk again, so that they are not kept.
    return merge_rows(jax.lax.map(jax.checkpoint(function), split_rows(hidden, chunks, 0)), *hidden.shape[:2])


def table_copies(table: jax.Array, sentences: int) -> jax.Array:
    """Copies [W, V', D] of the token table [V', D]: one for each part of a batch of `sentences`, on the part's devices.

    With copies, each part first sums its gradient over all chunks and all uses of the table; then the parts are summed
    once. With a single table, the compiler would sum every chunk's gradient over all devices, or gather the rows of the
    batch. Without a mesh, or if W does not divide `sentences`, the result is the table itself.
    """
    ways = parallel.batch_ways()
    table = constrain(table, "tensor", None)
    if ways == 1 or sentences % ways:
        return table
    return pin_to_parts(jnp.broadcast_to(table, (ways, *table.shape)))


def pin_to_parts(tables: jax.Array) -> jax.Array:
    """Pins `table_copies` [W, V', D], or their gradient, to the devices of their parts; does nothing to a table [V', D]."""
    return constrain(tables, BATCH, "tensor", None) if tables.ndim == 3 else tables


def logits_of(rows: jax.Array, tables: jax.Array, model: ModelConfig, dtype: Any, blank: bool = False) -> jax.Array:
    """Vocabulary logits [X, V'] float32 of rows [X, D], see `model.project`.

    `tables` is the table [V', D], or its `table_copies` [W, V', D]; then each row uses the copy of its part.
    """
    if tables.ndim == 2:
        return constrain_logits(project(rows, tables, model, dtype, blank))
    parts = rows.reshape(tables.shape[0], -1, rows.shape[-1])
    logits = jax.vmap(partial(project, config=model, dtype=dtype, blank=blank))(parts, tables)
    return constrain_logits(constrain(logits, BATCH, None, "tensor").reshape(-1, logits.shape[-1]))


def log_normalisers(
    hidden: jax.Array, table: jax.Array, model: ModelConfig, limit: int, dtype: Any, blank: bool = False
) -> jax.Array:
    """The logarithm [B, X] of the sum over the vocabulary that turns scores of rows [B, X, D] into log-probabilities.

    Args:
      hidden: the rows.
      table: [V', D] token table.
      model: the architecture.
      limit: about so many rows have their logits in memory at once; 0: all.
      dtype: type of matrix products.
      blank: whether CTC's blank counts.
    """
    tables = table_copies(table, hidden.shape[0])

    def of_part(part: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(logits_of(part, tables, model, dtype, blank), axis=-1)

    return map_rows(of_part, hidden, limit)


def likeliest(
    hidden: jax.Array, table: jax.Array, model: ModelConfig, limit: int, dtype: Any, *, blank: bool = False,
    never: Sequence[int] = (),
) -> jax.Array:  # fmt: skip
    """The likeliest class [B, X] int32 of rows [B, X, D]: a token that is not in `never`, or with `blank` CTC's blank.

    The other arguments are those of `log_normalisers`.
    """
    tables = table_copies(table, hidden.shape[0])

    def of_part(part: jax.Array) -> jax.Array:
        logits = logits_of(part, tables, model, dtype, blank)
        if never:
            logits = logits.at[:, jnp.array(never)].set(NEGATIVE)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return map_rows(of_part, hidden, limit)


def token_scores(rows: jax.Array, table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """The logits [B, X, N] float32 of a sentence's own tokens [B, N] at its rows [B, X, D]; table [V', D].

    Products with the vectors of the tokens replace a look-up in logits, whose gradient would be a scatter.
    """
    # The table's vectors that are looked up are few: each device gets whole vectors, for its own sentences.
    rows, vectors = constrain(rows.astype(dtype), BATCH), constrain(table.astype(dtype), "tensor", None)
    token_vectors = constrain(jnp.take(vectors, tokens, axis=0), BATCH)
    return constrain(jnp.einsum("bxd,bnd->bxn", rows, token_vectors, preferred_element_type=jnp.float32), BATCH)
