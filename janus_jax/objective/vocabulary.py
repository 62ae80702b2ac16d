"""The loss terms that need vocabulary logits, computed some rows at a time.

Rows come in two groups: pairs, the rows that predict the same token, one of each stream (a masked token's NAR and AUX rows,
or the CTC row of a token, with its AR row); and singles, the other AR rows. A divergence compares rows of one pair, so that any cut through a group is allowed.

Legend: B sentences, U AR slots, M masked tokens at most, X rows of a group, c chunks, D model width, V' padded
vocabulary, W parts that a mesh divides batches into.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig, ObjectiveConfig
from janus_jax.model.streams import ar_slot_of, ar_targets, masked_flags
from janus_jax.objective.chunks import apart, chunks_of, copies, cut, logits_of
from janus_jax.objective.terms import label_smoothed, nll_and_smoothing, symmetric_kl
from janus_jax.types import Batch, Streams

Scalars = dict[str, jax.Array]
Rows = dict[str, jax.Array]  # stream -> hidden rows [B, X, D]
Labels = dict[str, jax.Array]  # stream -> the token of each row [B, X]; of no token: -1

# The streams whose rows each term reads.
TERM_STREAMS: dict[str, tuple[str, ...]] = {
    "ar": ("ar",),
    "nar": ("nar",),
    "aux": ("aux",),
    "length": (),
    "kl_ar_nar": ("ar", "nar"),
    "kl_nar_aux": ("nar", "aux"),
    "kl_ar_aux": ("ar", "aux"),
    "ctc": ("ctc",),
    "kl_ar_ctc": ("ar", "ctc"),
}
# What the terms of a stream, and the divergences from it, are divided by.
STREAM_DIVISORS = {"ar": "ar", "nar": "masked", "aux": "masked", "ctc": "ctc"}
_NONE = -1


@dataclass(frozen=True)
class VocabularyLoss:
    """Cross-entropies and divergences.

    Since the loss is linear in its terms, the gradients of rows and table are computed together with the value: no
    chunk's logits outlive it, and none are computed twice.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    dtype: Any
    terms: tuple[str, ...]
    pad: int

    def __call__(
        self,
        hidden: Streams,
        table: jax.Array,
        batch: Batch,
        weights: Scalars,
        divisors: Scalars,
        of_ctc: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, Scalars]:
        """Weighted total, and metrics `loss/<term>` and `nll/<stream>`.

        Args:
          hidden: rows of the joint pass; table: [V', D].
          batch: one micro-batch; weights, divisors: scalars by name.
          of_ctc: for each AR slot the CTC row that gives the same token, [B, U, D], and whether there is one, [B, U].
        """
        total, metrics = jnp.float32(0.0), {}
        tables = copies(table, batch.target.shape[0])
        for rows, labels in self._groups(hidden, batch, of_ctc):
            every = sum(x.shape[0] * x.shape[1] for x in rows.values())
            chunks = chunks_of(every, self.objective.projection_rows)
            rows = {name: cut(x, chunks, 0) for name, x in rows.items()}
            labels = {name: cut(x, chunks, _NONE) for name, x in labels.items()}
            value, found = _summed(self, rows, tables, labels, weights, divisors)
            total += value
            metrics = {name: metrics.get(name, 0.0) + found.get(name, 0.0) for name in metrics | found}
        return total, metrics

    def of_chunk(
        self, rows: Rows, labels: Labels, table: jax.Array, weights: Scalars, divisors: Scalars
    ) -> tuple[jax.Array, Scalars]:
        """The same for one chunk [X / c, D], all of whose logits live at once; table: [V', D], or its `copies` [W, V', D]."""
        logits = {name: logits_of(x, table, self.model, self.dtype) for name, x in rows.items()}
        values: Scalars = {}
        metrics: Scalars = {}
        # In the order of the streams, so that every process compiles one program; CTC's likelihood is a sentence's, not a row's.
        for name in [name for name in logits if name != "ctc"]:
            real = labels[name] != _NONE
            kind = STREAM_DIVISORS[name]
            nll, smoothing = nll_and_smoothing(logits[name], jnp.maximum(labels[name], 0), self.model.vocab_size)
            smoothed = label_smoothed(nll, smoothing, self.objective.label_smoothing)
            metrics[f"nll/{name}"] = jnp.where(real, nll, 0.0).sum() / divisors[f"rows/{kind}"]
            if name in self.terms:
                values[name] = jnp.where(real, smoothed, 0.0).sum() / divisors[kind]
        for term, sides in TERM_STREAMS.items():
            if term in self.terms and len(sides) == 2 and set(sides) <= set(logits):
                fixed = getattr(self.objective.stop_gradient, term)
                p, q = (jax.lax.stop_gradient(logits[side]) if side == fixed else logits[side] for side in sides)
                # A pair's AR row may belong to a token that the others don't predict.
                real = labels[sides[1]] != _NONE
                divisor = divisors[STREAM_DIVISORS[sides[1]]]
                values[term] = jnp.where(real, symmetric_kl(p, q), 0.0).sum() / divisor
        total = sum((weights[name] * value for name, value in values.items()), jnp.float32(0.0))
        return total, metrics | {f"loss/{name}": value for name, value in values.items()}

    def _groups(
        self, hidden: Streams, batch: Batch, of_ctc: tuple[jax.Array, jax.Array] | None
    ) -> list[tuple[Rows, Labels]]:
        """Pairs, then singles; the streams that were not asked for are left out."""
        pairs: tuple[Rows, Labels] = {}, {}
        groups = [pairs]
        masked = batch.masked.shape[1]
        for name in ("nar", "aux"):
            if (rows := getattr(hidden, name)) is not None:
                pairs[0][name] = rows
                is_real = jnp.arange(masked) < batch.masked_count[:, None]
                pairs[1][name] = jnp.where(is_real, jnp.take_along_axis(batch.target, batch.masked, axis=1), _NONE)
        if hidden.ar is None:
            return groups if pairs[0] else []
        labels = ar_targets(batch.target, self.model)
        rows, labels = hidden.ar, jnp.where(labels == self.pad, _NONE, labels)
        if of_ctc is not None:
            partners, has_one = of_ctc
            return [({"ar": rows, "ctc": partners}, {"ar": labels, "ctc": jnp.where(has_one, labels, _NONE)})]
        if not pairs[0]:
            return [({"ar": rows}, {"ar": labels})]
        # The slots of masked tokens first, in the order of their ranks.
        slots = labels.shape[1]
        flags = masked_flags(ar_slot_of(batch.masked, self.model), batch.masked_count, slots)
        order = jnp.argsort(~flags, axis=1, stable=True)
        rows, labels = _permuted(rows, order), jnp.take_along_axis(labels, order, axis=1)
        short = max(masked - slots, 0)
        rows = jnp.pad(rows, ((0, 0), (0, short), (0, 0)))
        labels = jnp.pad(labels, ((0, 0), (0, short)), constant_values=_NONE)
        pairs[0]["ar"], pairs[1]["ar"] = rows[:, :masked], labels[:, :masked]
        if slots > masked:
            groups.append(({"ar": rows[:, masked:]}, {"ar": labels[:, masked:]}))
        return groups


@jax.custom_vjp
def _permuted(x: jax.Array, order: jax.Array) -> jax.Array:
    """Rows of x [B, U, D] in the order [B, U], a permutation: its gradient is one too, and no scatter."""
    return jnp.take_along_axis(x, order[:, :, None], axis=1)


def _permuted_forward(x: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _permuted(x, order), order


def _permuted_backward(order: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _permuted(gradient, jnp.argsort(order, axis=1)), None


_permuted.defvjp(_permuted_forward, _permuted_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    of: VocabularyLoss, rows: Rows, table: jax.Array, labels: Labels, weights: Scalars, divisors: Scalars
) -> tuple[jax.Array, Scalars]:
    """The sum over chunks; rows [c, X, D], labels [c, X]."""
    parts = jax.lax.map(lambda part: of.of_chunk(*part, table, weights, divisors), (rows, labels))
    return jax.tree.map(lambda x: x.sum(0), parts)


def _summed_forward(
    of: VocabularyLoss, rows: Rows, table: jax.Array, labels: Labels, weights: Scalars, divisors: Scalars
) -> Any:
    both = jax.value_and_grad(
        lambda x, vectors, y: of.of_chunk(x, y, vectors, weights, divisors), argnums=(0, 1), has_aux=True
    )

    def gradient(*part: Any) -> Any:
        value, (d_rows, d_table) = both(*part)
        return value, (d_rows, apart(d_table))

    first = jax.tree.map(lambda x: x[0], (rows, labels))
    if next(iter(rows.values())).shape[0] == 1:
        value, (d_rows, d_table) = gradient(first[0], table, first[1])
        return value, (jax.tree.map(lambda x: x[None], d_rows), d_table)

    def one(carry: Any, part: Any) -> Any:
        value, (d_rows, d_table) = gradient(part[0], table, part[1])
        return jax.tree.map(jnp.add, carry, (value, d_table)), d_rows

    shapes = jax.eval_shape(gradient, first[0], table, first[1])
    value, d_table = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][1]))
    zeros = value, apart(d_table)
    (value, d_table), d_rows = jax.lax.scan(one, zeros, (rows, labels))
    return value, (d_rows, d_table)


def _summed_backward(of: VocabularyLoss, gradients: Any, cotangent: Any) -> Any:
    # Metrics are for the log: only the total is differentiated.
    scale = cotangent[0]
    d_rows, d_table = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
    return d_rows, d_table, None, None, None


_summed.defvjp(_summed_forward, _summed_backward)
