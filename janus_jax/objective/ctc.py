"""The CTC loss (docs/method.md, section 8): emissions, the likelihood of a target, its best alignment, glancing.

The likelihood of a target reads only the probabilities of the blank and of the target's tokens. So logits over the
whole vocabulary are needed for the normaliser alone, and are not kept.

Legend: B sentences, T target length, N = T - 2 inner target tokens at most (no bos, no eos), R CTC rows, D model width,
V' padded vocabulary, K = 2N + 1 states of an alignment (blank, token, blank, ..., token, blank).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from janus_jax.config import ModelConfig, ObjectiveConfig
from janus_jax.model import Janus
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.families import ar
from janus_jax.model.families.ctc import real_rows, row_counts
from janus_jax.objective.aligned import Partners
from janus_jax.objective.logits import likeliest, log_normalisers, token_scores
from janus_jax.objective.sentence import SentenceTerms, drawn
from janus_jax.objective.terms import divisor_of, term
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Batch, Params

BLANK = -1  # in an alignment: the row gives the blank


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """The targets of the CTC rows of a batch."""

    tokens: jax.Array  # [B, N] int32, inner target tokens
    real: jax.Array  # [B, N] bool, False at padding
    rows: jax.Array  # [B, R] bool, True at the real rows of a sentence
    fits: jax.Array  # [B] bool, True if there are tokens and enough rows for them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Emissions:
    """Log-probabilities of the blank and of the target's tokens at each row, normalised over vocabulary and blank."""

    labels: jax.Array  # [B, R, N], of each target token
    blank: jax.Array  # [B, R]


def labels_of(source: jax.Array, target: jax.Array, config: ModelConfig, pad: int) -> Labels:
    """The inner tokens of targets [..., T], and whether they fit the CTC rows of sources [..., S].

    Two adjacent equal tokens need a blank between them. So a target fits if the number of its tokens plus the number of
    its adjacent repeats is at most the number of the sentence's rows.
    """
    real_source = source != pad
    if target.shape[-1] < 3:  # bos and eos alone
        target = jnp.pad(target, [(0, 0)] * (target.ndim - 1) + [(0, 1)], constant_values=pad)
    tokens = target[..., 1:-1]
    real = target[..., 2:] != pad  # a token is inner if another follows it: the last is eos
    repeats = ((tokens[..., 1:] == tokens[..., :-1]) & real[..., 1:]).sum(axis=-1)
    count = real.sum(axis=-1)
    fits = (count > 0) & (count + repeats <= row_counts(real_source, config))
    return Labels(tokens, real, real_rows(real_source, config), fits)


def emissions(
    hidden: jax.Array, table: jax.Array, labels: Labels, model: ModelConfig, objective: ObjectiveConfig, dtype: Any
) -> Emissions:
    """Emissions of CTC rows `hidden` [B, R, D]; table [V', D]."""
    raw = scores(hidden, table, labels, model, dtype)
    total = log_normalisers(hidden, table, model, objective.projection_rows, dtype, blank=True)
    return Emissions(raw.labels - total[:, :, None], raw.blank - total)


def scores(hidden: jax.Array, table: jax.Array, labels: Labels, model: ModelConfig, dtype: Any) -> Emissions:
    """Emissions without the normaliser. Each row differs by a constant, so the best alignment is the same."""
    rows, vectors = constrain(hidden.astype(dtype), BATCH), constrain(table.astype(dtype), "tensor", None)
    blank_scores = jnp.einsum("brd,d->br", rows, vectors[model.vocab_size], preferred_element_type=jnp.float32)
    return Emissions(token_scores(hidden, table, labels.tokens, dtype), constrain(blank_scores, BATCH))


def negative_log_likelihood(emitted: Emissions, labels: Labels) -> jax.Array:
    """-log p(target | source) [B], summed over all alignments; 0 where the target doesn't fit.

    `optax.ctc_loss` runs on the few classes that alignments of a sentence use: the blank and the distinct tokens of the
    target. It normalises each row over these classes alone, which divides the likelihood by one normaliser per row. The
    last step multiplies by the normalisers again (in logarithms, it subtracts their sum).
    """
    count = labels.tokens.shape[1]
    first = jnp.argmax(labels.tokens[:, :, None] == labels.tokens[:, None, :], axis=-1)
    distinct = (first == jnp.arange(count)) & labels.real
    classes = jnp.where(distinct[:, None], emitted.labels, NEGATIVE)
    classes = jnp.concatenate([emitted.blank[:, :, None], classes], axis=-1)
    log_normalisers = jnp.where(labels.rows, jax.nn.logsumexp(classes, axis=-1), 0.0).sum(axis=1)
    absent_rows, absent_labels = 1.0 - labels.rows, 1.0 - labels.real
    # optax looks classes up by matrix products, which accelerators would compute with fewer bits.
    with jax.default_matmul_precision("highest"):
        value = optax.ctc_loss(classes, absent_rows, first + 1, absent_labels) - log_normalisers
    return jnp.where(labels.fits, value, 0.0)


def best_alignment(emitted: Emissions, labels: Labels) -> jax.Array:
    """The likeliest alignment (Viterbi): the index of the target token that each row gives [B, R] int32, or BLANK.

    Padding rows are BLANK. Where a target does not fit, the result has no meaning.
    """
    batch, rows, count = emitted.labels.shape
    pairs = jnp.stack([jnp.broadcast_to(emitted.blank[:, :, None], emitted.labels.shape), emitted.labels], axis=-1)
    states = jnp.concatenate([pairs.reshape(batch, rows, 2 * count), emitted.blank[:, :, None]], axis=-1)
    # An alignment may skip the blank between two adjacent tokens, unless they are equal.
    differs = jnp.pad(labels.tokens[:, 1:] != labels.tokens[:, :-1], ((0, 0), (1, 0)))
    may_skip = jnp.pad(jnp.stack([jnp.zeros_like(differs), differs], axis=-1).reshape(batch, -1), ((0, 0), (0, 1)))

    def forward(best: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        emitted, is_real = row
        from_one_before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=NEGATIVE)[:, :-1]
        from_two_before = jnp.pad(best, ((0, 0), (2, 0)), constant_values=NEGATIVE)[:, :-2]
        candidates = jnp.stack([best, from_one_before, jnp.where(may_skip, from_two_before, NEGATIVE)])
        back = jnp.where(is_real[:, None], jnp.argmax(candidates, axis=0), 0)
        return jnp.where(is_real[:, None], candidates.max(axis=0) + emitted, best), back

    start = jnp.where(jnp.arange(2 * count + 1) < 2, states[:, 0], NEGATIVE)
    along_rows = (jnp.moveaxis(states, 1, 0)[1:], labels.rows.T[1:])
    best, backs = jax.lax.scan(forward, start, along_rows)
    final = 2 * labels.real.sum(axis=1)  # the last blank; the last token is the state before
    ends = jnp.take_along_axis(best, jnp.stack([final, jnp.maximum(final - 1, 0)], axis=1), axis=1)
    state = final - (ends[:, 1] > ends[:, 0])

    def backward(state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        return state - jnp.take_along_axis(back, state[:, None], axis=1)[:, 0], state

    first, rest = jax.lax.scan(backward, state, backs, reverse=True)
    path = jnp.concatenate([first[None], rest]).T
    return jnp.where((path % 2 == 1) & labels.rows, path // 2, BLANK).astype(jnp.int32)


def confident_rows(alignment: jax.Array, emitted: Emissions) -> jax.Array:
    """For each target token, the index [B, N] int32 of the most confident row that alignment [B, R] assigns to it."""
    aligned = alignment[:, :, None] == jnp.arange(emitted.labels.shape[2])
    return jnp.argmax(jnp.where(aligned, emitted.labels, -jnp.inf), axis=1).astype(jnp.int32)


def glance(
    rows: jax.Array, table: jax.Array, labels: Labels, alignment: jax.Array, model: ModelConfig, objective: ObjectiveConfig, *,
    ratio: jax.Array, dtype: Any, rng: jax.Array,
) -> jax.Array:  # fmt: skip
    """The target tokens that CTC rows read in glancing training, [B, R] int32; -1: the row keeps its usual input.

    A chosen row reads the token (or the blank) that the best alignment assigns to it. The number of chosen rows is
    `ratio` times the number of rows in which the best path differs from the best alignment; they are drawn at random
    from all rows. (Glancing: GLAT, Qian et al. 2021, arXiv 2008.07905.)

    Args:
      rows: [B, R, D] CTC rows of a first pass.
      table: [V', D] token table.
      labels: the targets.
      alignment: [B, R] int32, from `best_alignment`.
      model, objective: settings.
      ratio: [] float32, chosen rows per row that differs.
      dtype: type of matrix products.
      rng: random key of the choice.
    """
    best = likeliest(rows, table, model, objective.projection_rows, dtype, blank=True)
    aligned = jnp.take_along_axis(labels.tokens, jnp.maximum(alignment, 0), axis=1)
    aligned = jnp.where(alignment == BLANK, model.vocab_size, aligned)
    wrong = ((best != aligned) & labels.rows).sum(axis=1)
    shown = jnp.round(ratio * wrong).astype(jnp.int32)
    return jnp.where(drawn(labels.rows, shown, rng) & labels.fits[:, None], aligned, -1)


def in_model(config: ModelConfig) -> bool:
    """Whether a model has CTC rows."""
    return config.ctc_ratio > 0


def count_tokens(batch: Batch, config: ModelConfig, pad: int) -> jax.Array:
    """The number [] of inner tokens of the targets that fit their CTC rows, in a batch [..., B, T]."""
    labels = labels_of(batch.source, batch.parallel, config, pad)
    return (labels.real & labels.fits[..., None]).sum()


def loss(
    net: Janus, objective: ObjectiveConfig, params: Params, terms: Collection[str], hidden: Mapping[str, jax.Array],
    batch: Batch, divisors: Mapping[str, jax.Array],
) -> SentenceTerms:  # fmt: skip
    """CTC's loss if "ctc" is a term, its metrics, and the partners of the AR slots if "kl_ar_ctc" is a term."""
    labels = labels_of(batch.source, batch.parallel, net.config, net.specials.pad)
    table = params["embed_tokens"]["embedding"]
    emitted = emissions(hidden["ctc"], table, labels, net.config, objective, net.dtype)
    nll = negative_log_likelihood(emitted, labels).sum()
    unfit = (labels.real.any(axis=1) & ~labels.fits).sum()
    metrics = {"nll/ctc": nll / divisors[divisor_of("nll/ctc")], "ctc/unfit": unfit / divisors[divisor_of("ctc/unfit")]}
    values = {"ctc": nll / divisors[term("ctc").divisor]} if "ctc" in terms else {}
    if "kl_ar_ctc" not in terms:
        return SentenceTerms(values, metrics)
    slots = hidden["ar"].shape[1]
    partners = ar_partners(net, objective, hidden["ctc"], jax.lax.stop_gradient(emitted), labels, slots)
    return SentenceTerms(values, metrics, {"ctc": partners})


def ar_partners(
    net: Janus, objective: ObjectiveConfig, rows: jax.Array, emitted: Emissions, labels: Labels, slots: int
) -> Partners:
    """For each of the U = `slots` AR slots, the CTC row that predicts the same token.

    It is the most confident of the rows that the best alignment assigns to the token. It is no partner if its tokens
    together have a probability below objective.ctc_floor: it then says too little about tokens.
    """
    best = confident_rows(best_alignment(emitted, labels), emitted)
    confident = -jnp.expm1(jnp.take_along_axis(emitted.blank, best, axis=1)) >= objective.ctc_floor
    inner = ar.predicted_position(jnp.arange(slots), net.config) - 1  # index among the inner target tokens
    index = jnp.clip(inner, 0, labels.tokens.shape[1] - 1)
    valid = (confident & labels.real & labels.fits[:, None])[:, index] & (inner == index)
    return Partners(jnp.take_along_axis(rows, best[:, index][:, :, None], axis=1), valid)


def shown_tokens(
    net: Janus, objective: ObjectiveConfig, params: Params, rows: jax.Array, batch: Batch, *, ratio: jax.Array, rng: jax.Array
) -> jax.Array:  # fmt: skip
    """The target tokens that CTC rows read in glancing training [B, R] int32, from the `rows` [B, R, D] of a first pass."""
    labels = labels_of(batch.source, batch.parallel, net.config, net.specials.pad)
    table = params["embed_tokens"]["embedding"]
    alignment = best_alignment(scores(rows, table, labels, net.config, net.dtype), labels)
    return glance(rows, table, labels, alignment, net.config, objective, ratio=ratio, dtype=net.dtype, rng=rng)
