"""The objectives `ar`, `cmlm` and `janus`: which rows they need, and their terms added up from config.

Every term is a sum over rows, divided by a weight that depends on the whole global batch alone, so that padding,
devices and micro-batches never change the result.

Legend: A micro-batches, B sentences, U AR slots, M masked tokens at most, D model width, V' padded vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig, ObjectiveConfig, Weight, objective_terms
from janus_jax.model import Janus, constrain_logits, project
from janus_jax.model.streams import ar_slot_of, ar_targets
from janus_jax.objective.terms import label_smoothed, length_nll, nll_and_smoothing, symmetric_kl
from janus_jax.types import Batch, Params, Streams

Scalars = dict[str, jax.Array]

# The streams whose rows each term reads.
TERM_STREAMS: dict[str, tuple[str, ...]] = {
    "ar": ("ar",),
    "nar": ("nar",),
    "aux": ("aux",),
    "length": (),
    "kl_ar_nar": ("ar", "nar"),
    "kl_nar_aux": ("nar", "aux"),
    "kl_ar_aux": ("ar", "aux"),
}


def streams_of(terms: Any) -> tuple[str, ...]:
    """The streams that a set of loss terms reads; "aux" brings "nar", whose rows its rows see."""
    needed = {stream for term in terms for stream in TERM_STREAMS[term]}
    if "aux" in needed:
        needed.add("nar")
    return tuple(stream for stream in ("ar", "nar", "aux") if stream in needed)


def weight_at(weight: Weight, step: jax.Array) -> jax.Array:
    """A weight at a training step: constant, or linear between its (step, value) points."""
    if not isinstance(weight, tuple):
        return jnp.float32(weight)
    steps, values = zip(*weight, strict=True)
    return jnp.interp(step.astype(jnp.float32), jnp.array(steps, jnp.float32), jnp.array(values, jnp.float32))


def denominators(batch: Batch, config: ModelConfig, objective: ObjectiveConfig, pad: int) -> Scalars:
    """What each kind of term is divided by, over a whole step's batch [..., B, T].

    `ar` real AR targets, `masked` masked tokens, `length` sentences; with normalize_by "target" all are the number of
    target tokens (pretraining, METHOD section 6).
    """
    real = batch.target != pad
    tokens = (real if config.ar_start == "eos" else real[..., 1:]).sum()
    counts = {"ar": tokens, "masked": batch.masked_count.sum(), "length": real[..., 0].sum()}
    if objective.normalize_by == "target":
        counts = dict.fromkeys(counts, tokens)
    return {name: jnp.maximum(count, 1).astype(jnp.float32) for name, count in counts.items()}


def loss(
    net: Janus,
    objective: ObjectiveConfig,
    params: Params,
    batch: Batch,
    *,
    divisors: Scalars,
    step: jax.Array,
    rng: jax.Array | None = None,
) -> tuple[jax.Array, Scalars]:
    """One micro-batch's share of the loss, and of each term for the log.

    Args:
      net, objective: what to compute.
      params: parameters, differentiable.
      batch: one micro-batch [B, ...].
      divisors: `denominators` of the whole step's batch.
      step: [] int32, for scheduled weights.
      rng: dropout is on when given.

    Returns:
      The weighted total, and metrics that add up over micro-batches: `loss/<term>` (label-smoothed means, KLs),
      `nll/<stream>` (plain negative log-likelihood per token) and `weight/<term>` is left to the caller.
    """
    terms = objective_terms(objective)
    weights = {name: weight_at(weight, step) for name, weight in terms.items()}
    streams = streams_of(terms)
    keys = (None, None, None) if rng is None else tuple(jax.random.split(rng, 3))
    encoded = net.encode(params, batch.source, keys[0])
    two = objective.encoder_passes == 2 and "ar" in streams and "nar" in streams and rng is not None
    encoded_nar = net.encode(params, batch.source, keys[2]) if two else None
    hidden = net.train_streams(params, encoded, batch, keys[1], streams=streams, encoded_nar=encoded_nar)
    vocabulary = VocabularyLoss(net.config, objective, net.dtype, tuple(terms), net.specials.pad)
    total, metrics = vocabulary(hidden, params["embed_tokens"]["embedding"], batch, weights, divisors)
    if "length" in terms:
        real = batch.target != net.specials.pad
        logits = (encoded if encoded_nar is None else encoded_nar).length_logits
        value = (length_nll(logits, real.sum(1)) * real[:, 0]).sum() / divisors["length"]
        total += weights["length"] * value
        metrics["loss/length"] = value
    return total, metrics


@dataclass(frozen=True)
class VocabularyLoss:
    """The terms that need vocabulary logits, computed a chunk of sentences at a time.

    Since the loss is linear in its terms, the gradients of rows and table are computed together with the value: no
    chunk's logits outlive it, and none are computed twice.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    dtype: Any
    terms: tuple[str, ...]
    pad: int

    def __call__(
        self, hidden: Streams, table: jax.Array, batch: Batch, weights: Scalars, divisors: Scalars
    ) -> tuple[jax.Array, Scalars]:
        """Weighted total and metrics.

        Args:
          hidden: rows of the joint pass; table: [V', D].
          batch: one micro-batch; weights, divisors: scalars by name.
        """
        sentences = batch.target.shape[0]
        chunk = min(self.objective.projection_chunk or sentences, sentences)
        if sentences % chunk:
            # The largest chunk that divides the rows, so that shapes stay static.
            chunk = max(size for size in range(1, chunk + 1) if sentences % size == 0)
        return _summed(self, sentences // chunk, hidden, table, batch, weights, divisors)

    def of_chunk(
        self, hidden: Streams, table: jax.Array, batch: Batch, weights: Scalars, divisors: Scalars
    ) -> tuple[jax.Array, Scalars]:
        """The same for one chunk, all of whose logits live at once."""
        logits = {
            name: constrain_logits(project(rows, table, self.model, self.dtype))
            for name in ("ar", "nar", "aux")
            if (rows := getattr(hidden, name)) is not None
        }
        values: Scalars = {}
        metrics: Scalars = {}
        rank_is_real = jnp.arange(batch.masked.shape[1]) < batch.masked_count[:, None]
        masked_targets = jnp.take_along_axis(batch.target, batch.masked, axis=1)
        for name in logits:
            labels = ar_targets(batch.target, self.model) if name == "ar" else masked_targets
            real = labels != self.pad if name == "ar" else rank_is_real
            divisor = divisors["ar" if name == "ar" else "masked"]
            nll, smoothing = nll_and_smoothing(logits[name], labels, self.model.vocab_size)
            smoothed = label_smoothed(nll, smoothing, self.objective.label_smoothing)
            metrics[f"nll/{name}"] = jnp.where(real, nll, 0.0).sum() / divisor
            if name in self.terms:
                values[name] = jnp.where(real, smoothed, 0.0).sum() / divisor
        if "ar" in logits and "nar" in logits:
            slots = jnp.maximum(ar_slot_of(batch.masked, self.model), 0)
            logits["ar"] = jnp.take_along_axis(logits["ar"], slots[:, :, None], axis=1)
        for term in ("kl_ar_nar", "kl_nar_aux", "kl_ar_aux"):
            if term in self.terms:
                fixed = getattr(self.objective.stop_gradient, term)
                p, q = (
                    jax.lax.stop_gradient(logits[side]) if side == fixed else logits[side]
                    for side in TERM_STREAMS[term]
                )
                values[term] = jnp.where(rank_is_real, symmetric_kl(p, q), 0.0).sum() / divisors["masked"]
        total = sum((weights[name] * value for name, value in values.items()), jnp.float32(0.0))
        return total, metrics | {f"loss/{name}": value for name, value in values.items()}


def _split(tree: Any, chunks: int) -> Any:
    """[B, ...] -> [chunks, B / chunks, ...]; a chunk takes every chunks-th sentence, so that a batch that is split over
    devices stays where it is."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, chunks, *x.shape[1:]), 1, 0), tree)


def _join(tree: Any) -> Any:
    """The inverse of `_split`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(
    of: VocabularyLoss,
    chunks: int,
    hidden: Streams,
    table: jax.Array,
    batch: Batch,
    weights: Scalars,
    divisors: Scalars,
) -> tuple[jax.Array, Scalars]:
    one = partial(of.of_chunk, table=table, weights=weights, divisors=divisors)
    if chunks == 1:
        return one(hidden, batch=batch)
    parts = jax.lax.map(lambda part: one(part[0], batch=part[1]), _split((hidden, batch), chunks))
    return jax.tree.map(lambda x: x.sum(0), parts)


def _summed_forward(
    of: VocabularyLoss,
    chunks: int,
    hidden: Streams,
    table: jax.Array,
    batch: Batch,
    weights: Scalars,
    divisors: Scalars,
) -> Any:
    gradient = jax.value_and_grad(
        lambda rows, vectors, part: of.of_chunk(rows, vectors, part, weights, divisors), argnums=(0, 1), has_aux=True
    )
    if chunks == 1:
        value, gradients = gradient(hidden, table, batch)
        return value, gradients

    def one(carry: Any, part: Any) -> Any:
        value, (d_rows, d_table) = gradient(part[0], table, part[1])
        return _add(carry, (value, d_table)), d_rows

    parts = _split((hidden, batch), chunks)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient, first[0], table, first[1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][1]))
    (value, d_table), d_rows = jax.lax.scan(one, zeros, parts)
    return value, (_join(d_rows), d_table)


def _summed_backward(of: VocabularyLoss, chunks: int, gradients: Any, cotangent: Any) -> Any:
    # Metrics are for the log: only the total is differentiated.
    scale = cotangent[0]
    d_hidden, d_table = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
    return d_hidden, d_table, None, None, None


_summed.defvjp(_summed_forward, _summed_backward)
