"""Mask-predict: fill masked slots, re-mask the least sure, repeat (Ghazvininejad et al. 2019; METHOD section 7).

Legend: B sentences, K length candidates a sentence, N = B*K rows, T slots (bos and eos counted), V vocabulary columns,
C length classes, P passes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.vocab import argmax, forbid
from janus_jax.types import Array, Hypotheses, Specials

SHORTEST = 2  # bos and eos


@dataclass(frozen=True)
class MaskPredictRules:
    """What differs between our search and the released one; the defaults are ours, `RELEASED` is theirs."""

    lengths: Literal["top", "contiguous"] = "top"  # the K most probable lengths, or K around the most probable
    score_edges: bool = False  # average bos and eos into a candidate's score, at 0
    forbid_specials: bool = True  # never emit mask, pad or bos
    end_at_eos: bool = True  # an inner eos ends the sentence
    refuse_empty: bool = True  # a candidate without inner tokens loses to any other
    score_length: bool = True  # the probability of its length counts in a candidate's score

    RELEASED: ClassVar["MaskPredictRules"]


MaskPredictRules.RELEASED = MaskPredictRules(
    lengths="contiguous",
    score_edges=True,
    forbid_specials=False,
    end_at_eos=False,
    refuse_empty=False,
    score_length=False,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """Every pass of a search, for looking at."""

    tokens: Array  # [P, B, K, T] after the pass filled its slots
    scores: Array  # [P, B, K, T] log-probability of each
    remasked: Array  # [P, B, K, T] bool, slots masked again after the pass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """Every length candidate of every sentence."""

    tokens: Array  # [B, K, T] int32, bos ... eos, then padding
    lengths: Array  # [B, K] int32, bos and eos counted
    scores: Array  # [B, K] float32, mean log-probability; what the choice between candidates compares
    token_scores: Array  # [B, K, T] float32, 0 at bos, eos and padding
    empty: Array  # [B, K] bool, no inner token
    trace: Trace | None


def remask_counts(length: int, passes: int) -> list[int]:
    """How many slots are masked again after each of `passes` passes, for a target of `length` tokens, bos and eos counted."""
    return [(length - 2) * (passes - s) // passes for s in range(1, passes + 1)]


def candidate_lengths(length_logits: Array, k: int, *, limit: int, rules: MaskPredictRules) -> Array:
    """Target lengths to try, from the length head.

    Args:
      length_logits: [B, C], class = target length with bos and eos.
      k: how many lengths a sentence.
      limit: longest length allowed.
      rules: `lengths` "top" takes the k most probable from 2 to limit, most probable first; "contiguous" the released
        a - k//2 ... around the most probable a, at least 2, so that short ones repeat.

    Returns:
      [B, k] int32.

    Raises:
      ValueError: fewer than k lengths to choose from.
    """
    classes = jnp.arange(length_logits.shape[-1])
    if rules.lengths == "contiguous":
        best = jnp.maximum(jnp.argmax(length_logits, axis=-1), SHORTEST)
        lengths = best[:, None] - k // 2 + jnp.arange(k)
        return jnp.clip(lengths, SHORTEST, limit).astype(jnp.int32)
    choices = min(limit + 1, length_logits.shape[-1]) - SHORTEST
    if k > choices:
        raise ValueError(f"length_beam: {k} lengths wanted, but only {choices} lie between 2 and {limit}; lower it")
    allowed = (classes >= SHORTEST) & (classes <= limit)
    return lax.top_k(jnp.where(allowed, length_logits, -jnp.inf), k)[1].astype(jnp.int32)


def mask_predict(
    predict_fn: Callable[[Array], Array],
    lengths: Array,
    *,
    passes: int,
    specials: Specials,
    limit: int,
    vocab_size: int,
    rules: MaskPredictRules = MaskPredictRules(),
    project_fn: Callable[[Array], Array] | None = None,
    chunk: int = 2048,
    trace: bool = False,
) -> Candidates:
    """Fills bos, mask..., eos in `passes` decoder passes (METHOD section 7); to be called under `jax.jit`.

    Args:
      predict_fn: tokens [N, T] -> logits [N, T, V] of each slot's own token; with `project_fn`, hidden rows [N, T, D].
      lengths: [B, K] int32, lengths to try, bos and eos counted, 2 to limit.
      passes: how often the decoder runs (the released "iteration n" is n + 1).
      specials: ids of the special tokens.
      limit: T.
      vocab_size: logit columns from here on are padding and never emitted.
      rules: see `MaskPredictRules`.
      project_fn: hidden rows [X, D] -> logits [X, V]; logits of at most `chunk` rows then live at once.
      chunk: see `project_fn`.
      trace: also return what each pass did.

    Returns:
      Candidates [B, K, T] with bos and eos; `choose` picks one a sentence.

    Raises:
      ValueError: an impossible setting.
    """
    if passes < 1 or limit < SHORTEST:
        raise ValueError(f"passes {passes} must be at least 1 and limit {limit} at least {SHORTEST}")
    batch, k = lengths.shape
    length = lengths.reshape(-1, 1).astype(jnp.int32)
    slot = jnp.arange(limit, dtype=jnp.int32)
    inner = (slot > 0) & (slot < length - 1)
    start = jnp.where(inner, specials.mask, jnp.where(slot < length, specials.eos, specials.pad))
    start = start.at[:, 0].set(specials.bos).astype(jnp.int32)
    banned = (specials.pad, specials.bos, specials.mask) if rules.forbid_specials else ()

    def one_pass(state: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], Trace | None]:
        tokens, scores = state
        rows = predict_fn(tokens)
        best, best_scores = _best_tokens(rows, project_fn, chunk, banned, vocab_size)
        # A slot is open when it holds the mask: where the rules let mask be emitted, it stays open.
        open_slots = inner & (tokens == specials.mask)
        tokens = jnp.where(open_slots, best, tokens)
        scores = jnp.where(open_slots, best_scores, scores)
        count = (length - 2) * (passes - number) // passes
        again = inner & (_ranks(jnp.where(inner, scores, jnp.inf)) < count)
        shape = (batch, k, limit)
        seen = Trace(tokens.reshape(shape), scores.reshape(shape), again.reshape(shape)) if trace else None
        return (jnp.where(again, specials.mask, tokens), jnp.where(again, 0.0, scores)), seen

    state = (start, jnp.zeros(start.shape, jnp.float32))
    (tokens, scores), seen = lax.scan(one_pass, state, jnp.arange(1, passes + 1, dtype=jnp.int32))
    if rules.end_at_eos:
        tokens, scores, length, inner = _end_at_eos(tokens, scores, length, specials)
    # With end_at_eos an inner eos is a prediction too, and counts in the mean.
    counted = length[:, 0] if rules.score_edges else jnp.maximum(jnp.sum(inner, axis=-1), 1)
    means = jnp.sum(scores, axis=-1) / counted.astype(jnp.float32)
    return Candidates(
        tokens=tokens.reshape(batch, k, limit),
        lengths=length.reshape(batch, k),
        scores=means.reshape(batch, k),
        token_scores=scores.reshape(batch, k, limit),
        empty=(length <= SHORTEST).reshape(batch, k),
        trace=seen,
    )


def with_length_scores(candidates: Candidates, length_logits: Array, lengths: Array) -> Candidates:
    """Adds log p(length) to what a candidate's mean log-probability averages.

    The mean alone is blind to what a short candidate leaves out: it prefers a length that drops a phrase to the right
    one with a difficult word. With it the score is that of length and tokens together, a token's worth each.

    Args:
      candidates: of `mask_predict`.
      length_logits: [B, C] of the length head.
      lengths: [B, K] lengths that were asked for, bos and eos counted.
    """
    logp = jnp.take_along_axis(jax.nn.log_softmax(length_logits), lengths, axis=-1)
    inner = jnp.maximum(lengths - 2, 1)
    return replace(candidates, scores=candidates.scores + logp / inner)


def choose(candidates: Candidates, rules: MaskPredictRules = MaskPredictRules()) -> Array:
    """The index [B] int32 of each sentence's best candidate; of equals the first."""
    scores = candidates.scores
    if rules.refuse_empty:
        scores = jnp.where(candidates.empty, -jnp.inf, scores)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def best_hypotheses(
    candidates: Candidates, specials: Specials, rules: MaskPredictRules = MaskPredictRules()
) -> Hypotheses:
    """The best candidate of each sentence as Hypotheses [B, 1, T-1]: without bos, lengths counting eos."""
    pick = choose(candidates, rules)[:, None]
    tokens = jnp.take_along_axis(candidates.tokens, pick[..., None], axis=1)[:, :, 1:]
    return Hypotheses(
        tokens=tokens,
        lengths=jnp.take_along_axis(candidates.lengths, pick, axis=1) - 1,
        scores=jnp.take_along_axis(candidates.scores, pick, axis=1),
        token_scores=jnp.take_along_axis(candidates.token_scores, pick[..., None], axis=1)[:, :, 1:],
    )


def _best_tokens(
    rows: Array, project_fn: Callable[[Array], Array] | None, chunk: int, banned: tuple[int, ...], vocab_size: int
) -> tuple[Array, Array]:
    """The likeliest allowed token [N, T] of each slot and its log-probability."""

    def pick(logits: Array) -> tuple[Array, Array]:
        best = argmax(logits + forbid(logits.shape[-1], banned, vocab_size))
        score = jnp.take_along_axis(logits, best[..., None], axis=-1)[..., 0]
        return best, score - jax.nn.logsumexp(logits, axis=-1)

    if project_fn is None:
        return pick(rows)
    shape = rows.shape[:-1]
    flat = rows.reshape(-1, rows.shape[-1])
    parts = -(-flat.shape[0] // chunk)
    if parts == 1:
        best, score = pick(project_fn(flat))
    else:
        size = -(-flat.shape[0] // parts)
        padded = jnp.pad(flat, ((0, parts * size - flat.shape[0]), (0, 0)))
        best, score = lax.map(lambda part: pick(project_fn(part)), padded.reshape(parts, size, -1))
        best, score = best.reshape(-1)[: flat.shape[0]], score.reshape(-1)[: flat.shape[0]]
    return best.reshape(shape), score.reshape(shape)


def _ranks(scores: Array) -> Array:
    """The rank [N, T] of each slot when a row is sorted upwards; of equals the lower position comes first."""
    return jnp.argsort(jnp.argsort(scores, axis=-1, stable=True), axis=-1, stable=True)


def _end_at_eos(tokens: Array, scores: Array, length: Array, specials: Specials) -> tuple[Array, Array, Array, Array]:
    """Cuts each row behind its first eos: tokens, scores, length [N, 1] and the slots [N, T] whose scores count."""
    slot = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
    first = jnp.argmax(tokens == specials.eos, axis=-1).astype(jnp.int32)[:, None]
    early = first < length - 1
    inner = (slot > 0) & jnp.where(early, slot <= first, slot < first)
    tokens = jnp.where(slot <= first, tokens, specials.pad)
    return tokens, jnp.where(inner, scores, 0.0), first + 1, inner
