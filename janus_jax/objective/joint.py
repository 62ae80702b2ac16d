"""The objectives: which streams they need, and their terms added up from config.

Every term is a sum over rows, divided by a weight that depends on the whole global batch alone, so that padding,
devices and micro-batches never change the result.

Legend: A micro-batches, B sentences, U AR slots, M masked tokens at most, N inner target tokens at
most, R CTC rows, D model width, V' padded vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ModelConfig, ObjectiveConfig, Weight, objective_terms
from janus_jax.model import Janus
from janus_jax.objective import ctc
from janus_jax.objective.terms import length_nll
from janus_jax.objective.vocabulary import TERM_STREAMS, Scalars, VocabularyLoss
from janus_jax.types import Batch, Encoded, Params, Streams


def streams_of(terms: Any) -> tuple[str, ...]:
    """The streams that a set of loss terms reads; "aux" brings "nar", whose rows its rows see."""
    needed = {stream for term in terms for stream in TERM_STREAMS[term]}
    if "aux" in needed:
        needed.add("nar")
    return tuple(stream for stream in ("ar", "nar", "aux", "ctc") if stream in needed)


def weight_at(weight: Weight, step: jax.Array) -> jax.Array:
    """A weight at a training step: constant, or linear between its (step, value) points."""
    if not isinstance(weight, tuple):
        return jnp.float32(weight)
    steps, values = zip(*weight, strict=True)
    return jnp.interp(step.astype(jnp.float32), jnp.array(steps, jnp.float32), jnp.array(values, jnp.float32))


def active_terms(objective: ObjectiveConfig, step: int) -> tuple[str, ...]:
    """The loss terms whose weight at a training step (0 for the first) is not zero: rows that only others read need not be
    computed. All, where none of the former reads rows.
    """
    terms = objective_terms(objective)

    def weighs(weight: Weight) -> bool:
        return not isinstance(weight, tuple) or np.interp(step, *zip(*weight, strict=True)) > 0

    active = tuple(name for name, weight in terms.items() if weighs(weight))
    return active if streams_of(active) else tuple(terms)


def denominators(batch: Batch, config: ModelConfig, objective: ObjectiveConfig, pad: int) -> Scalars:
    """What each kind of term is divided by, over a whole step's batch [..., B, T].

    `ar` real AR targets, `masked` masked tokens, `length` sentences, `ctc` the inner tokens of targets that fit their CTC
    rows; with normalize_by "target" all are the number of target tokens (pretraining, METHOD section 6). `rows/ar` and so on
    are the former in any case: what is told per token is divided by them.
    """
    real = batch.target != pad
    tokens = (real if config.ar_start == "eos" else real[..., 1:]).sum()
    counts = {"ar": tokens, "masked": batch.masked_count.sum(), "length": real[..., 0].sum()}
    if config.ctc_ratio:
        labels = ctc.labels_of(batch.source, batch.target, config, pad)
        counts["ctc"] = (labels.real & labels.fits[..., None]).sum()
    rows = {f"rows/{name}": count for name, count in counts.items()}
    if objective.normalize_by == "target":
        counts = dict.fromkeys(counts, tokens)
    counts |= rows
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
    terms: tuple[str, ...] | None = None,
) -> tuple[jax.Array, Scalars]:
    """One micro-batch's share of the loss, and of each term for the log.

    Args:
      net, objective: what to compute.
      params: parameters, differentiable.
      batch: one micro-batch [B, ...].
      divisors: `denominators` of the whole step's batch.
      step: [] int32, for scheduled weights.
      rng: dropout is on when given.
      terms: those to compute; all of the objective's by default.

    Returns:
      The weighted total, and metrics that add up over micro-batches: `loss/<term>` (label-smoothed means, KLs),
      `nll/<stream>` (plain negative log-likelihood per token), `ctc/unfit` (share of the targets that their CTC rows cannot
      give, which count nothing); `weight/<term>` is left to the caller.
    """
    terms = tuple(objective_terms(objective)) if terms is None else terms
    weights = {name: weight_at(getattr(objective.weights, name), step) for name in terms}
    streams = streams_of(terms)
    # Dropout of encoder, decoder, second encoder pass.
    keys = (None, None, None) if rng is None else tuple(jax.random.split(rng, 3))
    encoded = net.encode(params, batch.source, keys[0])
    two = objective.encoder_passes == 2 and "ar" in streams and len(streams) > 1 and rng is not None
    encoded_nar = net.encode(params, batch.source, keys[2]) if two else None
    other = encoded if encoded_nar is None else encoded_nar
    glanced = None
    if "ctc" in streams and rng is not None and objective.glancing != 0:
        ratio = weight_at(objective.glancing, step)
        glanced = _glanced(net, objective, params, other, batch, ratio=ratio, rng=jax.random.fold_in(rng, 3))
    hidden = net.train_streams(
        params, encoded, batch, keys[1], streams=streams, encoded_nar=encoded_nar, glanced=glanced
    )
    table = params["embed_tokens"]["embedding"]
    vocabulary = VocabularyLoss(net.config, objective, net.dtype, terms, net.specials.pad)
    of_ctc, own, told = None, {}, {}
    if hidden.ctc is not None:
        own, told, of_ctc = _ctc_terms(net, objective, terms, hidden, table, batch, divisors)
    total, metrics = vocabulary(hidden, table, batch, weights, divisors, of_ctc)
    if "length" in terms:
        real = batch.target != net.specials.pad
        own["length"] = (length_nll(other.length_logits, real.sum(1)) * real[:, 0]).sum() / divisors["length"]
    total += sum((weights[name] * value for name, value in own.items()), jnp.float32(0.0))
    return total, metrics | told | {f"loss/{name}": value for name, value in own.items()}


def _ctc_terms(
    net: Janus, objective: ObjectiveConfig, terms: tuple[str, ...], hidden: Streams, table: jax.Array, batch: Batch, divisors: Scalars
) -> tuple[Scalars, Scalars, tuple[jax.Array, jax.Array] | None]:  # fmt: skip
    """The terms that are sums over sentences, metrics, and where AR is to be matched the `_partners` of its rows."""
    labels = ctc.labels_of(batch.source, batch.target, net.config, net.specials.pad)
    found = ctc.emissions(hidden.ctc, table, labels, net.config, objective, net.dtype)
    nll = ctc.negative_log_likelihood(found, labels).sum()
    unfit = (labels.real.any(axis=1) & ~labels.fits).sum()
    told = {"nll/ctc": nll / divisors["rows/ctc"], "ctc/unfit": unfit / divisors["rows/length"]}
    own = {"ctc": nll / divisors["ctc"]} if "ctc" in terms else {}
    if "kl_ar_ctc" not in terms:
        return own, told, None
    slots = hidden.ar.shape[1]
    return own, told, _partners(net, objective, hidden.ctc, jax.lax.stop_gradient(found), labels, slots)


def _partners(
    net: Janus, objective: ObjectiveConfig, rows: jax.Array, found: ctc.Emissions, labels: ctc.Labels, slots: int
) -> tuple[jax.Array, jax.Array]:
    """For each of the U AR slots the CTC row that gives the same token [B, U, D], and whether there is one [B, U].

    Of the rows that the best alignment puts a token at it is the most confident; rows that blank takes nearly whole
    (objective.ctc_floor) say too little of tokens.
    """
    best = ctc.confident_rows(ctc.best_alignment(found, labels), found)
    kept = -jnp.expm1(jnp.take_along_axis(found.blank, best, axis=1)) >= objective.ctc_floor
    position = jnp.arange(slots) + (1 if net.config.ar_start == "bos" else 0)
    nth = jnp.clip(position - 1, 0, labels.tokens.shape[1] - 1)
    has_one = (kept & labels.real & labels.fits[:, None])[:, nth] & (position - 1 == nth)
    return jnp.take_along_axis(rows, best[:, nth][:, :, None], axis=1), has_one


def _glanced(
    net: Janus, objective: ObjectiveConfig, params: Params, encoded: Encoded, batch: Batch, *, ratio: jax.Array, rng: jax.Array
) -> jax.Array:  # fmt: skip
    """What the CTC rows are shown of the target, after a first pass without gradient; see `ctc.glance`."""
    params, encoded = jax.lax.stop_gradient((params, encoded))
    dropout, choice = jax.random.split(rng)
    rows, _ = net.ctc_rows(params, batch.source, encoded, rng=dropout)
    labels = ctc.labels_of(batch.source, batch.target, net.config, net.specials.pad)
    table = params["embed_tokens"]["embedding"]
    alignment = ctc.best_alignment(ctc.scores(rows, table, labels, net.config, net.dtype), labels)
    return ctc.glance(rows, table, labels, alignment, net.config, objective, ratio=ratio, dtype=net.dtype, rng=choice)
