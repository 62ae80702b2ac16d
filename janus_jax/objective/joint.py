"""The loss of an objective: the sum of its terms, with the weights of the configuration.

Every term is a sum over rows, divided by a count of the whole global batch. So padding, devices and micro-batches never
change the result.

Legend: B sentences, T target length.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ConfigError, ModelConfig, ObjectiveConfig, Weight, objective_terms
from janus_jax.model import Janus
from janus_jax.model.families import with_attended
from janus_jax.objective import ctc, dag, heads
from janus_jax.objective.aligned import aligned_sets
from janus_jax.objective.correction import own_tokens
from janus_jax.objective.sentence import SentenceLoss
from janus_jax.objective.terms import read_families, term
from janus_jax.objective.token_losses import Scalars, TokenLosses, length_nll
from janus_jax.types import Batch, Encoded, Params

# Families whose loss is the negative log-likelihood of a whole target. All other families have a loss for each token.
SENTENCE_LOSSES: dict[str, SentenceLoss] = {
    "ctc": SentenceLoss(ctc.in_model, ctc.count_tokens, ctc.loss, ctc.shown_tokens),
    "dag": SentenceLoss(dag.in_model, dag.count_tokens, dag.loss, dag.shown_tokens),
}


def weight_at(weight: Weight, step: jax.Array) -> jax.Array:
    """A weight at a training step: constant, or linear between its (step, value) points."""
    if not isinstance(weight, tuple):
        return jnp.float32(weight)
    steps, values = zip(*weight, strict=True)
    return jnp.interp(step.astype(jnp.float32), jnp.array(steps, jnp.float32), jnp.array(values, jnp.float32))


def active_terms(objective: ObjectiveConfig, step: int) -> tuple[str, ...]:
    """The loss terms to compute at a training step (0 for the first): those whose weight is not zero.

    Rows that only other terms read need not be computed. If no term with a weight reads rows, the result is all terms.
    With objective.ar_every, most steps leave out the terms that read AR rows.
    """
    terms = objective_terms(objective)

    def has_weight(weight: Weight) -> bool:
        return not isinstance(weight, tuple) or np.interp(step, *zip(*weight, strict=True)) > 0

    active = tuple(name for name, weight in terms.items() if has_weight(weight))
    without_ar = tuple(name for name in active if "ar" not in term(name).families)
    if step % objective.ar_every and read_families(without_ar):
        return without_ar
    return active if read_families(active) else tuple(terms)


def check_two_targets(objective: ObjectiveConfig) -> None:
    """Checks the objective of a run in which AR rows and the other rows have different targets (`Batch.parallel_target`).

    Raises:
      ConfigError: a divergence between AR and other rows has a weight. Such rows predict different tokens.
    """
    weighted = [
        name for name in objective_terms(objective) if term(name).kind == "divergence" and "ar" in term(name).families
    ]
    if weighted:
        raise ConfigError(
            f"config.objective.weights.{weighted[0]}: the data has a second target for all rows but AR's, so a divergence "
            f"compares different tokens; set {' and '.join(f'objective.weights.{name}=0' for name in weighted)}"
        )


def batch_divisors(batch: Batch, config: ModelConfig, objective: ObjectiveConfig, pad: int) -> Scalars:
    """What the terms and metrics of a whole step's batch [..., B, T] are divided by: its `batch_counts`, 1 in place of 0."""
    counts = batch_counts(batch, config, objective, pad)
    return {name: jnp.maximum(count, 1.0) for name, count in counts.items()}


def batch_counts(batch: Batch, config: ModelConfig, objective: ObjectiveConfig, pad: int) -> Scalars:
    """What terms and metrics are means over, counted in a batch [..., B, T]; all [] float32.

    - `ar`: real target tokens that AR rows predict; `heads`: the same without bos; `masked`: masked tokens; `length`:
      sentences; `ctc`: inner tokens of the targets that fit their CTC rows; `dag`: tokens of the targets that fit their
      graph, bos and eos counted. With `normalize_by="target"` all of them are the number of target tokens (pretraining;
      docs/method.md, section 6).
    - `rows/ar`, `rows/heads`, `rows/masked`, `rows/length`, `rows/ctc`, `rows/dag`: the same counts, whatever
      normalize_by is. Metrics per token are divided by them.
    """
    real = batch.target != pad
    behind = real[..., 1:].sum()
    tokens = real.sum() if config.ar_start == "eos" else behind
    counts = {"ar": tokens, "heads": behind, "masked": batch.masked_count.sum(), "length": real[..., 0].sum()}
    counts |= {
        name: family_loss.count(batch, config, pad)
        for name, family_loss in SENTENCE_LOSSES.items()
        if family_loss.in_model(config)
    }
    rows = {f"rows/{name}": count for name, count in counts.items()}
    if objective.normalize_by == "target":
        counts = dict.fromkeys(counts, tokens)
    counts |= rows
    return {name: count.astype(jnp.float32) for name, count in counts.items()}


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
    """The share of one micro-batch in the loss of a step, and its metrics for the log.

    Args:
      net, objective: the model, and the objective with its weights.
      params: parameters, differentiable.
      batch: one micro-batch [B, ...].
      divisors: `batch_divisors` of the whole step's batch.
      step: [] int32, for scheduled weights.
      rng: random key of dropout and glancing; None: neither of them.
      terms: names of the terms to compute; None: all terms of the objective.

    Returns:
      The weighted total, and metrics. Their sums over micro-batches are the metrics of the step: `loss/<term>`
      (label-smoothed means, KLs), `nll/<family>` (plain negative log-likelihood per token), `ctc/unfit` and
      `dag/unfit` (share of the targets that do not fit their rows; their loss is 0), and how graphs are used
      (`dag.usage`). The caller adds `weight/<term>`.
    """
    terms = tuple(objective_terms(objective)) if terms is None else terms
    weights = {name: weight_at(getattr(objective.weights, name), step) for name in terms}
    # As `active_terms` leaves AR out of most steps only if other terms read rows.
    if read_families(name for name in terms if "ar" not in term(name).families):
        weights = {
            name: weight * objective.ar_every if "ar" in term(name).families else weight
            for name, weight in weights.items()
        }
    families = with_attended(read_families(terms))
    # Dropout keys of the encoder, the decoder and the second encoder pass.
    keys = (None, None, None) if rng is None else tuple(jax.random.split(rng, 3))
    encoded = net.encode(params, batch.source, keys[0])
    twice = objective.encoder_passes == 2 and "ar" in families and len(families) > 1 and rng is not None
    parallel = net.encode(params, batch.source, keys[2]) if twice else encoded
    shown = {} if rng is None else _shown(net, objective, params, parallel, batch, families, step, rng, keys[1])
    hidden = net.train_rows(
        params, encoded, batch, keys[1], families=families, encoded_parallel=parallel if twice else None, shown=shown
    )
    table = params["embed_tokens"]["embedding"]
    values, metrics, partners = {}, {}, {}
    for name in [name for name in hidden if name in SENTENCE_LOSSES]:
        part = SENTENCE_LOSSES[name].loss(net, objective, params, terms, hidden, batch, divisors)
        values, metrics, partners = values | part.values, metrics | part.metrics, partners | part.partners
    if "heads" in terms:
        part = heads.loss(net, objective, params, encoded, hidden["ar"], batch, divisors)
        values, metrics = values | part.values, metrics | part.metrics
        if not any("ar" in term(name).families for name in terms if name != "heads"):
            hidden = {name: rows for name, rows in hidden.items() if name != "ar"}
    if "length" in terms:
        real = batch.parallel != net.specials.pad
        nll = length_nll(parallel.length_logits, real.sum(1)) * real[:, 0]
        values["length"] = nll.sum() / divisors[term("length").divisor]
    sets = aligned_sets(hidden, batch, net.config, net.specials.pad, partners)
    token_losses = TokenLosses(net.config, objective, net.dtype, terms)
    total, token_metrics = token_losses(sets, table, weights, divisors)
    total += sum((weights[name] * value for name, value in values.items()), jnp.float32(0.0))
    metrics |= token_metrics | {f"loss/{name}": value for name, value in values.items()}
    # A term that nothing computes would never be trained.
    if missing := [name for name in terms if f"loss/{name}" not in metrics]:
        raise ValueError(
            f"loss term {missing[0]!r}: nothing in objective/joint.py or objective/token_losses.py computes it"
        )
    return total, metrics


def _shown(
    net: Janus,
    objective: ObjectiveConfig,
    params: Params,
    encoded: Encoded,
    batch: Batch,
    families: Sequence[str],
    step: jax.Array,
    rng: jax.Array,
    dropout: jax.Array,
) -> dict[str, jax.Array]:
    """What rows of these families read in place of some masks, by family: tokens [B, rows], -1 elsewhere, after a first pass.

    Args:
      encoded: what parallel rows attend to.
      rng: random key of the step.
      dropout: that of the decoder in the joint pass.
    """
    shown = {}
    if objective.glancing != 0:
        ratio, key = weight_at(objective.glancing, step), jax.random.fold_in(rng, 3)
        for name in [name for name in families if name in SENTENCE_LOSSES]:
            # This pass has the dropout of the joint pass, unless rows of other families are in that one too.
            fixed = jax.lax.stop_gradient((params, encoded))
            rows = net.train_rows(*fixed, batch, dropout, families=(name,))[name]
            glance = SENTENCE_LOSSES[name].shown_tokens
            shown[name] = glance(net, objective, fixed[0], rows, batch, ratio=ratio, rng=key)
    if objective.nar_correction != 0 and "nar" in families:
        share, key = weight_at(objective.nar_correction, step), jax.random.fold_in(rng, 4)
        shown["nar"] = own_tokens(net, objective, params, encoded, batch, share=share, rng=key)
    return shown
