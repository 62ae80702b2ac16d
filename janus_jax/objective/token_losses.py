"""The losses of rows that predict one token: cross-entropies, and divergences between rows that predict the same token.

Each term is a sum over rows (docs/method.md, section 5), divided by a count of the whole step's batch. Logits are
computed for one chunk of rows at a time.

Legend: B sentences, X places of an aligned set, R rows (any number of axes), c chunks, D model width, V' padded
vocabulary, C length classes, W parts into which a mesh splits a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from janus_jax.config import ModelConfig, ObjectiveConfig
from janus_jax.objective.aligned import NO_TOKEN, Aligned
from janus_jax.objective.logits import chunks_of, logits_of, pin_to_parts, split_rows, table_copies
from janus_jax.objective.terms import own_term, term

Scalars = dict[str, jax.Array]
Rows = dict[str, jax.Array]  # family -> hidden rows
Labels = dict[str, jax.Array]  # family -> the token of each row, or NO_TOKEN


def nll_and_smoothing(logits: jax.Array, labels: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Per row: -log p[label], and the mean of -log p over the V entries of the vocabulary.

    Args:
      logits: [R, V'] float32; columns >= vocab_size hold a large negative number.
      labels: [R] int32.
      vocab_size: V.
    """
    lse = jax.nn.logsumexp(logits, axis=-1)
    nll = lse - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    real = (
        logits if logits.shape[-1] == vocab_size else jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, 0.0)
    )
    return nll, lse - real.sum(-1) / vocab_size


def label_smoothed(nll: jax.Array, smoothing: jax.Array, eps: float) -> jax.Array:
    """(1 - eps) * nll + eps * smoothing, per row."""
    return (1.0 - eps) * nll + eps * smoothing


def symmetric_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Per row 0.5 * sum_v (P - Q)(log P - log Q); [R, V'] twice -> [R].

    The normalisers of log P and log Q drop out, because P - Q sums to zero.
    """
    difference = jax.nn.softmax(p_logits, axis=-1) - jax.nn.softmax(q_logits, axis=-1)
    return 0.5 * (difference * (p_logits - q_logits)).sum(-1)


def length_nll(logits: jax.Array, lengths: jax.Array) -> jax.Array:
    """Cross-entropy of the length head per sentence; logits [B, C], lengths [B] with bos and eos, capped at C - 1."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.minimum(lengths, logits.shape[-1] - 1))


@dataclass(frozen=True)
class TokenLosses:
    """Cross-entropies and divergences of aligned rows.

    The gradients of rows and table are computed in the forward pass, chunk by chunk; the backward pass only scales
    them, since the total is linear in its terms. So the logits of a chunk are computed once and not kept.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    dtype: Any
    terms: tuple[str, ...]

    def __call__(
        self, sets: Sequence[Aligned], table: jax.Array, weights: Scalars, divisors: Scalars
    ) -> tuple[jax.Array, Scalars]:
        """The weighted total, and metrics `loss/<term>` and `nll/<family>`.

        Args:
          sets: all rows of the batch that have a loss for each token, see `aligned_sets`.
          table: [V', D].
          weights: term -> [] float32.
          divisors: `batch_divisors` of the step's batch.

        Raises:
          ValueError: no set holds the rows of both sides of a divergence.
        """
        for name in [name for name in self.terms if term(name).kind == "divergence"]:
            if not any(set(term(name).families) <= set(aligned.rows) for aligned in sets):
                raise ValueError(
                    f"term {name}: no aligned set holds the rows of both {' and '.join(term(name).families)}"
                )
        total, metrics = jnp.float32(0.0), {}
        for aligned in sets:
            rows, labels = aligned.rows, aligned.labels
            tables = table_copies(table, next(iter(rows.values())).shape[0])
            count = sum(x.shape[0] * x.shape[1] for x in rows.values())
            chunks = chunks_of(count, self.objective.projection_rows)
            rows = {name: split_rows(x, chunks, 0) for name, x in rows.items()}
            labels = {name: split_rows(x, chunks, NO_TOKEN) for name, x in labels.items()}
            value, part = _summed(self, rows, tables, labels, weights, divisors)
            total += value
            metrics = {name: metrics.get(name, 0.0) + part.get(name, 0.0) for name in metrics | part}
        return total, metrics

    def of_chunk(
        self, rows: Rows, labels: Labels, table: jax.Array, weights: Scalars, divisors: Scalars
    ) -> tuple[jax.Array, Scalars]:
        """The weighted total and the metrics of one chunk, all logits of which are in memory at once.

        Args:
          rows: family -> [B * X / c, D].
          labels: family -> [B * X / c] int32.
          table: [V', D], or its `table_copies` [W, V', D].
          weights, divisors: see `__call__`.
        """
        logits = {name: logits_of(x, table, self.model, self.dtype) for name, x in rows.items()}
        values: Scalars = {}
        metrics: Scalars = {}
        # The loop keeps the order of `logits`, so that every process compiles the same program.
        for family in [name for name in logits if term(own_term(name)).kind == "token"]:
            real = labels[family] != NO_TOKEN
            divisor = term(own_term(family)).divisor
            nll, smoothing = nll_and_smoothing(logits[family], jnp.maximum(labels[family], 0), self.model.vocab_size)
            metrics[f"nll/{family}"] = jnp.where(real, nll, 0.0).sum() / divisors[f"rows/{divisor}"]
            if own_term(family) in self.terms:
                smoothed = label_smoothed(nll, smoothing, self.objective.label_smoothing)
                values[own_term(family)] = jnp.where(real, smoothed, 0.0).sum() / divisors[divisor]
        for name in [name for name in self.terms if term(name).kind == "divergence"]:
            sides = term(name).families
            if set(sides) <= set(logits):
                fixed = getattr(self.objective.stop_gradient, name)
                p, q = (jax.lax.stop_gradient(logits[side]) if side == fixed else logits[side] for side in sides)
                # A row of AR may predict a token that the other family does not.
                real = labels[sides[1]] != NO_TOKEN
                values[name] = jnp.where(real, symmetric_kl(p, q), 0.0).sum() / divisors[term(name).divisor]
        total = sum((weights[name] * value for name, value in values.items()), jnp.float32(0.0))
        return total, metrics | {f"loss/{name}": value for name, value in values.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    losses: TokenLosses, rows: Rows, table: jax.Array, labels: Labels, weights: Scalars, divisors: Scalars
) -> tuple[jax.Array, Scalars]:
    """The sums of `of_chunk` over chunks; rows [c, B * X / c, D], labels [c, B * X / c]."""
    parts = jax.lax.map(lambda part: losses.of_chunk(*part, table, weights, divisors), (rows, labels))
    return jax.tree.map(lambda x: x.sum(0), parts)


def _summed_forward(
    losses: TokenLosses, rows: Rows, table: jax.Array, labels: Labels, weights: Scalars, divisors: Scalars
) -> Any:
    with_gradient = jax.value_and_grad(
        lambda x, vectors, y: losses.of_chunk(x, y, vectors, weights, divisors), argnums=(0, 1), has_aux=True
    )

    def gradient(*part: Any) -> Any:
        value, (d_rows, d_table) = with_gradient(*part)
        return value, (d_rows, pin_to_parts(d_table))

    first = jax.tree.map(lambda x: x[0], (rows, labels))
    if next(iter(rows.values())).shape[0] == 1:
        value, (d_rows, d_table) = gradient(first[0], table, first[1])
        return value, (jax.tree.map(lambda x: x[None], d_rows), d_table)

    def add_chunk(carry: Any, part: Any) -> Any:
        value, (d_rows, d_table) = gradient(part[0], table, part[1])
        return jax.tree.map(jnp.add, carry, (value, d_table)), d_rows

    shapes = jax.eval_shape(gradient, first[0], table, first[1])
    value, d_table = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][1]))
    zeros = value, pin_to_parts(d_table)
    (value, d_table), d_rows = jax.lax.scan(add_chunk, zeros, (rows, labels))
    return value, (d_rows, d_table)


def _summed_backward(losses: TokenLosses, gradients: Any, cotangent: Any) -> Any:
    # Only the total has a gradient: metrics are for the log.
    scale = cotangent[0]
    d_rows, d_table = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
    return d_rows, d_table, None, None, None


_summed.defvjp(_summed_forward, _summed_backward)
