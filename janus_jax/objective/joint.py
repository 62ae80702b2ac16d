"""The objectives `ar`, `cmlm` and `janus`: which streams they need, and their terms added up from config.

Every term is a sum over rows, divided by a weight that depends on the whole global batch alone, so that padding,
devices and micro-batches never change the result.

Legend: A micro-batches, B sentences, U AR slots, M masked tokens at most, D model width, V' padded vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig, ObjectiveConfig, Weight, objective_terms
from janus_jax.model import Janus
from janus_jax.objective.terms import length_nll
from janus_jax.objective.vocabulary import TERM_STREAMS, Scalars, VocabularyLoss
from janus_jax.types import Batch, Params


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
    target tokens (pretraining, METHOD section 6). `rows/ar` and `rows/masked` are the first two in any case: what is told
    per token is divided by them.
    """
    real = batch.target != pad
    tokens = (real if config.ar_start == "eos" else real[..., 1:]).sum()
    counts = {"ar": tokens, "masked": batch.masked_count.sum(), "length": real[..., 0].sum()}
    rows = {f"rows/{name}": counts[name] for name in ("ar", "masked")}
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
