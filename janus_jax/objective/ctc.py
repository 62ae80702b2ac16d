"""The CTC loss: emissions of the target's tokens, their likelihood summed over alignments, the best alignment.

A sentence's likelihood reads a row's probabilities of blank and of the target's own tokens alone, so that no array over
the vocabulary outlives the normaliser of its rows.

Legend: B sentences, T target length, N = T - 2 inner target tokens at most (no bos, no eos), R CTC rows, D model width,
V' padded vocabulary, K = 2N + 1 states of an alignment (blank, token, blank, ..., token, blank).
"""

from collections.abc import Callable, Collection, Mapping
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
from janus_jax.objective.logits import chunks_of, copies, cut, joined, logits_of
from janus_jax.objective.sentence import SentenceTerms
from janus_jax.objective.terms import divisor_of, term
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Batch, Encoded, Params

BLANK = -1  # in alignments: a row of no token


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """What the CTC rows of a batch are to give."""

    tokens: jax.Array  # [B, N] int32, inner target tokens
    real: jax.Array  # [B, N] bool
    rows: jax.Array  # [B, R] bool, a sentence's own rows
    fits: jax.Array  # [B] bool, there are tokens, and rows enough for them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Emissions:
    """What a sentence's alignments read of its rows: log-probabilities over vocabulary and blank."""

    labels: jax.Array  # [B, R, N] of each target token at each row
    blank: jax.Array  # [B, R]


def labels_of(source: jax.Array, target: jax.Array, config: ModelConfig, pad: int) -> Labels:
    """The inner tokens of targets [B, T], and whether the rows of sources [B, S] can give them.

    Between equal neighbours a blank must stand: a target fits if its tokens and adjacent repeats are at most R.
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
    tables = copies(table, hidden.shape[0])

    def normaliser(part: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(logits_of(part, tables, model, dtype, blank=True), axis=-1)

    raw = scores(hidden, table, labels, model, dtype)
    total = _by_rows(normaliser, hidden, objective.projection_rows)
    return Emissions(raw.labels - total[:, :, None], raw.blank - total)


def scores(hidden: jax.Array, table: jax.Array, labels: Labels, model: ModelConfig, dtype: Any) -> Emissions:
    """Emissions before they are normalised: each row's differ by a constant, which changes no choice between alignments."""
    # The few rows that are looked up come whole to each device, and stay with their sentences.
    rows, vectors = constrain(hidden.astype(dtype), BATCH), constrain(table.astype(dtype), "tensor", None)
    # Products with the target's own vectors, instead of columns picked from logits: the gradient of a pick is a scatter.
    own = constrain(jnp.take(vectors, labels.tokens, axis=0), BATCH)
    of_labels = jnp.einsum("brd,bnd->brn", rows, own, preferred_element_type=jnp.float32)
    of_blank = jnp.einsum("brd,d->br", rows, vectors[model.vocab_size], preferred_element_type=jnp.float32)
    return Emissions(constrain(of_labels, BATCH), constrain(of_blank, BATCH))


def _by_rows(of: Callable[[jax.Array], jax.Array], hidden: jax.Array, at_once: int) -> jax.Array:
    """`of` rows [X, D] -> [X] for all rows [B, R, D], about `at_once` at a time; [B, R]."""
    chunks = chunks_of(hidden.shape[0] * hidden.shape[1], at_once)
    if chunks == 1:
        return of(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape[:2])
    # Computed anew in the backward pass: no chunk's logits outlive it.
    return joined(jax.lax.map(jax.checkpoint(of), cut(hidden, chunks, 0)), *hidden.shape[:2])


def negative_log_likelihood(emitted: Emissions, labels: Labels) -> jax.Array:
    """-log p(target | source) [B], summed over all alignments; 0 where the target doesn't fit.

    `optax.ctc_loss` on the few classes that a sentence's alignments can meet: blank, and its distinct tokens. Its softmax
    over them alone divides each row by their sum, which every alignment meets once: that is taken back.
    """
    count = labels.tokens.shape[1]
    first = jnp.argmax(labels.tokens[:, :, None] == labels.tokens[:, None, :], axis=-1)
    distinct = (first == jnp.arange(count)) & labels.real
    classes = jnp.where(distinct[:, None], emitted.labels, NEGATIVE)
    classes = jnp.concatenate([emitted.blank[:, :, None], classes], axis=-1)
    divided = jnp.where(labels.rows, jax.nn.logsumexp(classes, axis=-1), 0.0).sum(axis=1)
    absent_rows, absent_labels = 1.0 - labels.rows, 1.0 - labels.real
    # It picks by products, which accelerators would round to fewer bits.
    with jax.default_matmul_precision("highest"):
        value = optax.ctc_loss(classes, absent_rows, first + 1, absent_labels) - divided
    return jnp.where(labels.fits, value, 0.0)


def best_alignment(emitted: Emissions, labels: Labels) -> jax.Array:
    """The likeliest alignment (Viterbi): the index of the target token that each row gives [B, R] int32, or BLANK.

    Rows beyond a sentence's own are BLANK; where a target doesn't fit, the result means nothing.
    """
    batch, rows, count = emitted.labels.shape
    pairs = jnp.stack([jnp.broadcast_to(emitted.blank[:, :, None], emitted.labels.shape), emitted.labels], axis=-1)
    states = jnp.concatenate([pairs.reshape(batch, rows, 2 * count), emitted.blank[:, :, None]], axis=-1)
    # A token may follow the one before without a blank between, unless they are equal.
    differs = jnp.pad(labels.tokens[:, 1:] != labels.tokens[:, :-1], ((0, 0), (1, 0)))
    may_skip = jnp.pad(jnp.stack([jnp.zeros_like(differs), differs], axis=-1).reshape(batch, -1), ((0, 0), (0, 1)))

    def forward(best: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        emitted, is_real = row
        one = jnp.pad(best, ((0, 0), (1, 0)), constant_values=NEGATIVE)[:, :-1]
        two = jnp.pad(best, ((0, 0), (2, 0)), constant_values=NEGATIVE)[:, :-2]
        ways = jnp.stack([best, one, jnp.where(may_skip, two, NEGATIVE)])
        back = jnp.where(is_real[:, None], jnp.argmax(ways, axis=0), 0)
        return jnp.where(is_real[:, None], ways.max(axis=0) + emitted, best), back

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
    """The row [B, N] int32 that gives each target token with the highest probability, of those aligned to it [B, R]."""
    aligned = alignment[:, :, None] == jnp.arange(emitted.labels.shape[2])
    return jnp.argmax(jnp.where(aligned, emitted.labels, -jnp.inf), axis=1).astype(jnp.int32)


def glance(
    rows: jax.Array, table: jax.Array, labels: Labels, alignment: jax.Array, model: ModelConfig, objective: ObjectiveConfig, *,
    ratio: jax.Array, dtype: Any, rng: jax.Array,
) -> jax.Array:  # fmt: skip
    """What CTC rows are shown of the target, [B, R]: the token (or blank) that the best alignment puts there, or -1 for nothing.

    Glancing (GLAT, Qian et al. 2021, arXiv 2008.07905): as many rows as `ratio` times those in which the best path differs
    from the alignment, chosen at random among all.

    Args:
      rows: [B, R, D] CTC rows of a first pass.
      table, labels, alignment, model, objective, dtype: as above.
      ratio: rows shown for each one that differs.
      rng: of the choice.
    """
    tables = copies(table, rows.shape[0])

    def best_of(part: jax.Array) -> jax.Array:
        return jnp.argmax(logits_of(part, tables, model, dtype, blank=True), axis=-1)

    best = _by_rows(best_of, rows, objective.projection_rows)
    aligned = jnp.take_along_axis(labels.tokens, jnp.maximum(alignment, 0), axis=1)
    aligned = jnp.where(alignment == BLANK, model.vocab_size, aligned)
    wrong = ((best != aligned) & labels.rows).sum(axis=1)
    shown = jnp.round(ratio * wrong).astype(jnp.int32)
    order = jnp.where(labels.rows, jax.random.uniform(rng, labels.rows.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    return jnp.where((rank < shown[:, None]) & labels.rows & labels.fits[:, None], aligned, -1)


def in_model(config: ModelConfig) -> bool:
    """Whether a model has CTC rows."""
    return config.ctc_ratio > 0


def count_tokens(batch: Batch, config: ModelConfig, pad: int) -> jax.Array:
    """The inner tokens of targets that fit their CTC rows, in a batch [..., B, T]."""
    labels = labels_of(batch.source, batch.target, config, pad)
    return (labels.real & labels.fits[..., None]).sum()


def loss(
    net: Janus, objective: ObjectiveConfig, terms: Collection[str], hidden: Mapping[str, jax.Array], table: jax.Array,
    batch: Batch, divisors: Mapping[str, jax.Array],
) -> SentenceTerms:  # fmt: skip
    """CTC's likelihood if it is a term, its metrics, and the CTC rows beside the AR slots if the two are matched."""
    labels = labels_of(batch.source, batch.target, net.config, net.specials.pad)
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
    """For each of the U AR slots the CTC row that gives the same token.

    Of the rows that the best alignment assigns to a token, it is the most confident one. Rows that give the blank nearly all
    probability (objective.ctc_floor) say too little about tokens.
    """
    best = confident_rows(best_alignment(emitted, labels), emitted)
    confident = -jnp.expm1(jnp.take_along_axis(emitted.blank, best, axis=1)) >= objective.ctc_floor
    inner = ar.predicted_position(jnp.arange(slots), net.config) - 1  # index among the inner target tokens
    nth = jnp.clip(inner, 0, labels.tokens.shape[1] - 1)
    exist = (confident & labels.real & labels.fits[:, None])[:, nth] & (inner == nth)
    return Partners(jnp.take_along_axis(rows, best[:, nth][:, :, None], axis=1), exist)


def shown_tokens(
    net: Janus, objective: ObjectiveConfig, params: Params, encoded: Encoded, batch: Batch, *, ratio: jax.Array, rng: jax.Array
) -> jax.Array:  # fmt: skip
    """What the CTC rows are shown of the target [B, R], after a first pass without gradient; see `glance`."""
    params, encoded = jax.lax.stop_gradient((params, encoded))
    dropout, choice = jax.random.split(rng)
    rows, _ = net.source_rows(params, "ctc", batch.source, encoded, rng=dropout)
    labels = labels_of(batch.source, batch.target, net.config, net.specials.pad)
    table = params["embed_tokens"]["embedding"]
    alignment = best_alignment(scores(rows, table, labels, net.config, net.dtype), labels)
    return glance(rows, table, labels, alignment, net.config, objective, ratio=ratio, dtype=net.dtype, rng=choice)
