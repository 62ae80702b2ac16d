"""The loss of an objective: its terms added up with the weights of the configuration.

Every term is a sum over rows, divided by a weight that depends on the whole global batch alone, so that padding,
devices and micro-batches never change the result.

Legend: A micro-batches, B sentences, U AR slots, M masked tokens at most, N inner target tokens at
most, R CTC rows, D model width, V' padded vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ModelConfig, ObjectiveConfig, Weight, objective_terms
from janus_jax.model import Janus
from janus_jax.model.families import ar, with_attended
from janus_jax.objective import ctc
from janus_jax.objective.aligned import Partners, aligned_sets
from janus_jax.objective.terms import divisor_of, read_families, term
from janus_jax.objective.token_losses import Rows, Scalars, TokenLosses, length_nll
from janus_jax.types import Batch, Encoded, Params


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
    return active if read_families(active) else tuple(terms)


def denominators(batch: Batch, config: ModelConfig, objective: ObjectiveConfig, pad: int) -> Scalars:
    """What each kind of term is divided by, over a whole step's batch [..., B, T].

    `ar` real AR targets, `masked` masked tokens, `length` sentences, `ctc` the inner tokens of targets that fit their CTC
    rows; with normalize_by "target" all are the number of target tokens (pretraining, docs/method.md, section 6). `rows/ar` and so on
    are the former in any case: metrics per token are divided by them.
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
      `nll/<family>` (plain negative log-likelihood per token), `ctc/unfit` (share of the targets that their CTC rows cannot
      give, which count nothing); `weight/<term>` is left to the caller.
    """
    terms = tuple(objective_terms(objective)) if terms is None else terms
    weights = {name: weight_at(getattr(objective.weights, name), step) for name in terms}
    families = with_attended(read_families(terms))
    # Dropout of encoder, decoder, second encoder pass.
    keys = (None, None, None) if rng is None else tuple(jax.random.split(rng, 3))
    encoded = net.encode(params, batch.source, keys[0])
    two = objective.encoder_passes == 2 and "ar" in families and len(families) > 1 and rng is not None
    parallel = net.encode(params, batch.source, keys[2]) if two else encoded
    shown = {}
    if "ctc" in families and rng is not None and objective.glancing != 0:
        ratio = weight_at(objective.glancing, step)
        shown["ctc"] = _glanced(net, objective, params, parallel, batch, ratio=ratio, rng=jax.random.fold_in(rng, 3))
    hidden = net.train_rows(
        params, encoded, batch, keys[1], families=families, encoded_parallel=parallel if two else None, shown=shown
    )
    table = params["embed_tokens"]["embedding"]
    values, metrics, partners = {}, {}, {}
    if "ctc" in hidden:
        values, metrics, partners = _ctc_terms(net, objective, terms, hidden, table, batch, divisors)
    if "length" in terms:
        real = batch.target != net.specials.pad
        nll = length_nll(parallel.length_logits, real.sum(1)) * real[:, 0]
        values["length"] = nll.sum() / divisors[term("length").divisor]
    sets = aligned_sets(hidden, batch, net.config, net.specials.pad, partners)
    token_losses = TokenLosses(net.config, objective, net.dtype, terms)
    total, token_metrics = token_losses(sets, table, weights, divisors)
    total += sum((weights[name] * value for name, value in values.items()), jnp.float32(0.0))
    return total, token_metrics | metrics | {f"loss/{name}": value for name, value in values.items()}


def _ctc_terms(
    net: Janus, objective: ObjectiveConfig, terms: tuple[str, ...], hidden: Rows, table: jax.Array, batch: Batch, divisors: Scalars
) -> tuple[Scalars, Scalars, dict[str, Partners]]:  # fmt: skip
    """CTC's likelihood if it is a term, its metrics, and the CTC rows beside the AR slots if the two are matched."""
    labels = ctc.labels_of(batch.source, batch.target, net.config, net.specials.pad)
    emitted = ctc.emissions(hidden["ctc"], table, labels, net.config, objective, net.dtype)
    nll = ctc.negative_log_likelihood(emitted, labels).sum()
    unfit = (labels.real.any(axis=1) & ~labels.fits).sum()
    metrics = {"nll/ctc": nll / divisors[divisor_of("nll/ctc")], "ctc/unfit": unfit / divisors[divisor_of("ctc/unfit")]}
    values = {"ctc": nll / divisors[term("ctc").divisor]} if "ctc" in terms else {}
    if "kl_ar_ctc" not in terms:
        return values, metrics, {}
    slots = hidden["ar"].shape[1]
    partners = _ctc_partners(net, objective, hidden["ctc"], jax.lax.stop_gradient(emitted), labels, slots)
    return values, metrics, {"ctc": partners}


def _ctc_partners(
    net: Janus, objective: ObjectiveConfig, rows: jax.Array, emitted: ctc.Emissions, labels: ctc.Labels, slots: int
) -> Partners:
    """For each of the U AR slots the CTC row that gives the same token.

    Of the rows that the best alignment assigns to a token, it is the most confident one. Rows that give the blank nearly all
    probability (objective.ctc_floor) say too little about tokens.
    """
    best = ctc.confident_rows(ctc.best_alignment(emitted, labels), emitted)
    confident = -jnp.expm1(jnp.take_along_axis(emitted.blank, best, axis=1)) >= objective.ctc_floor
    inner = ar.predicted_position(jnp.arange(slots), net.config) - 1  # index among the inner target tokens
    nth = jnp.clip(inner, 0, labels.tokens.shape[1] - 1)
    exist = (confident & labels.real & labels.fits[:, None])[:, nth] & (inner == nth)
    return Partners(jnp.take_along_axis(rows, best[:, nth][:, :, None], axis=1), exist)


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
