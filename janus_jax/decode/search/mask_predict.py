"""Mask-predict: fill masked slots, mask the least probable ones again, repeat (Ghazvininejad et al. 2019; docs/method.md).

Legend: B sentences, K length candidates a sentence, N = B*K rows, T slots (bos and eos counted), M slots that may be
masked, V vocabulary columns, C length classes, P passes, D model width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.decode.search.candidates import SHORTEST, Candidates, MaskPredictRules, Trace
from janus_jax.decode.search.vocab import argmax, by_chunks, forbid, log_probs_of
from janus_jax.types import Array, Specials

Schedule = Literal["linear", "cosine"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """State of the loop over passes."""

    number: Array  # [] int32, passes done
    tokens: Array  # [N, T], input of the next pass
    scores: Array  # [N, T] log-probability of each token of `tokens`, 0 where masked or fixed
    filled: Array  # [N, T], tokens after the last pass, before any is masked again
    filled_scores: Array  # [N, T]
    done: Array  # [N, 1] bool, final
    used: Array  # [N, 1] int32, passes until the candidate was final
    trace: Trace | None


def remask_counts(length: int, passes: int, schedule: Schedule = "linear") -> list[int]:
    """How many slots are masked again after each of `passes` passes, for a target of `length` tokens, bos and eos counted.

    Of n inner slots, after pass s of P: "linear" floor(n (P - s) / P), as published; "cosine" floor(n cos(pi s / 2P)) (Chang et
    al. 2022), which fills few slots at first. None after the last.
    """
    inner = length - SHORTEST
    if schedule == "linear":
        return [inner * (passes - s) // passes for s in range(1, passes + 1)]
    return [int(inner * math.cos(0.5 * math.pi * s / passes)) if s < passes else 0 for s in range(1, passes + 1)]


def mask_predict(
    predict_fn: Callable[[Array, Array], Array],
    lengths: Array,
    *,
    passes: int,
    specials: Specials,
    limit: int,
    vocab_size: int,
    rules: MaskPredictRules = MaskPredictRules.DEFAULT,
    start: Array | None = None,
    schedule: Schedule = "linear",
    early_stop: bool = False,
    revise: bool = False,
    project_fn: Callable[[Array], Array] | None = None,
    chunk: int = 2048,
    trace: bool = False,
) -> Candidates:
    """Fills bos, mask..., eos in `passes` decoder passes; to be called under `jax.jit`.

    Args:
      predict_fn: tokens [N, T], slots [N, M] -> logits [N, M, V] of the tokens at these slots; with `project_fn`,
        hidden rows [N, M, D]. It is called with as few slots as can still be masked.
      lengths: [B, K] int32, lengths to try, bos and eos counted, 2 to limit.
      passes: how often the decoder runs (the released "iteration n" is n + 1).
      specials: ids of the special tokens.
      limit: T.
      vocab_size: logit columns from here on are padding and never emitted.
      rules: see `MaskPredictRules`.
      start: [B, K, T] int32, targets of these lengths to start from, bos ... eos: tokens that are not mask stay as they are.
      schedule: see `remask_counts`.
      early_stop: a candidate that a pass has not changed is final, and the search ends when all are. The comparison
        is between filled targets, without masks.
      revise: each pass predicts all slots anew that were masked at first, not only those that are masked now.
      project_fn: hidden rows [X, D] -> logits [X, V]; logits of at most `chunk` rows then exist at once.
      chunk: see `project_fn`.
      trace: also return the tokens of each pass.

    Returns:
      Candidates [B, K, T] with bos and eos; `candidates.ranking` orders those of a sentence.

    Raises:
      ValueError: an impossible setting.
    """
    if passes < 1 or limit < SHORTEST:
        raise ValueError(f"passes {passes} must be at least 1 and limit {limit} at least {SHORTEST}")
    batch, k = lengths.shape
    length = lengths.reshape(-1, 1).astype(jnp.int32)
    slot = jnp.arange(limit, dtype=jnp.int32)
    inner = (slot > 0) & (slot < length - 1)
    if start is None:
        tokens = jnp.where(inner, specials.mask, jnp.where(slot < length, specials.eos, specials.pad))
        tokens = tokens.at[:, 0].set(specials.bos).astype(jnp.int32)
    else:
        tokens = start.reshape(batch * k, limit).astype(jnp.int32)
    free = inner & (tokens == specials.mask)
    table = np.array([remask_counts(n + SHORTEST, passes, schedule) for n in range(limit - SHORTEST + 1)], np.int32).T
    search = _Search(
        predict_fn=predict_fn,
        pick_fn=_picker(project_fn, chunk, specials, vocab_size, rules),
        mask=specials.mask,
        pad=specials.pad,
        free=free,
        again=jnp.asarray(table),
        early_stop=early_stop,
        revise=revise,
        strip_pads=rules.strip_pads,
    )
    # Where mask may be predicted, more slots can be masked than were masked again.
    fewer = rules.forbid_specials and not revise
    open_slots = table.max(axis=1) if fewer else np.full(passes, limit - SHORTEST)
    state = search.first(tokens, (passes, batch, k) if trace else None)
    for last, width in _stages([limit - SHORTEST, *open_slots[:-1].tolist()]):
        state = lax.while_loop(
            lambda s, end=last: (s.number < end) & ~jnp.all(s.done), lambda s, w=width: search.one_pass(s, w), state
        )
    tokens, scores, fixed = state.filled, state.filled_scores, inner & ~free
    if rules.end_at_eos:
        tokens, scores, length, inner = _end_at_eos(tokens, scores, length, specials)
    if rules.strip_pads:
        inner &= tokens != specials.pad
        tokens, scores, length = _strip_pads(tokens, scores, specials.pad)
    # With end_at_eos an inner eos is a prediction too, and counts in the mean.
    counted = length[:, 0] if rules.score_edges else jnp.maximum(jnp.sum(inner & ~fixed, axis=-1), 1)
    means = jnp.sum(scores, axis=-1) / counted.astype(jnp.float32)
    return Candidates(
        tokens=tokens.reshape(batch, k, limit),
        lengths=length.reshape(batch, k),
        scores=means.reshape(batch, k),
        token_scores=scores.reshape(batch, k, limit),
        empty=(length <= SHORTEST).reshape(batch, k),
        passes=state.used.reshape(batch, k),
        trace=state.trace,
    )


@dataclass(frozen=True)
class _Search:
    """Arguments that stay the same from pass to pass."""

    predict_fn: Callable[[Array, Array], Array]
    pick_fn: Callable[[Array], tuple[Array, Array]]  # rows [N, M, ...] -> tokens [N, M] and their log-probabilities
    mask: int
    pad: int
    free: Array  # [N, T] bool, slots to fill
    again: Array  # [P, T-1] int32, slots masked again after each pass, by the number of slots to fill
    early_stop: bool
    revise: bool
    strip_pads: bool

    def first(self, tokens: Array, trace: tuple[int, ...] | None) -> _State:
        """The state before the first pass; with `trace`, its leading axes [P, B, K]."""
        rows, limit = tokens.shape
        zeros = jnp.zeros((rows, limit), jnp.float32)
        empty_trace = None
        if trace:
            shape = (*trace, limit)
            empty_trace = Trace(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool))
        nothing = jnp.full((rows, limit), -1, jnp.int32)
        done, used = jnp.zeros((rows, 1), bool), jnp.zeros((rows, 1), jnp.int32)
        return _State(jnp.int32(0), tokens, zeros, nothing, zeros, done, used, empty_trace)

    def one_pass(self, state: _State, width: int) -> _State:
        """Fills the masked slots, or all, at most `width` a candidate, and masks the least probable ones again."""
        # Where the rules allow the mask token as a prediction, such a slot stays masked.
        masked = self.free if self.revise else self.free & (state.tokens == self.mask)
        at = jnp.argsort(~masked, axis=-1, stable=True)[:, :width].astype(jnp.int32)
        is_open = jnp.take_along_axis(masked, at, axis=1)
        best, best_scores = self.pick_fn(self.predict_fn(*self._without_pads(state.tokens, at)))
        tokens = _put_slots(state.tokens, at, best, is_open)
        scores = _put_slots(state.scores, at, best_scores, is_open)
        done = state.done
        if self.early_stop:
            tokens = jnp.where(done, state.filled, tokens)
            scores = jnp.where(done, state.filled_scores, scores)
            done = done | jnp.all(tokens == state.filled, axis=-1, keepdims=True)
        # Only the released rules emit pads, which do not count as tokens of the target.
        count = self.again[state.number][jnp.sum(self.free & (tokens != self.pad), axis=-1)][:, None]
        again = self.free & (_ranks(jnp.where(self.free, scores, jnp.inf)) < count) & ~done
        trace = state.trace
        if trace is not None:
            # Nothing for a pass after the one that made a candidate final: other candidates of the batch need it.
            new = Trace(jnp.where(state.done, 0, tokens), jnp.where(state.done, 0.0, scores), again)
            trace = jax.tree.map(lambda all_, one: all_.at[state.number].set(one.reshape(all_.shape[1:])), trace, new)
        return _State(
            number=state.number + 1,
            tokens=jnp.where(again, self.mask, tokens),
            scores=jnp.where(again, 0.0, scores),
            filled=tokens,
            filled_scores=scores,
            done=done,
            used=state.used + ~state.done,
            trace=trace,
        )

    def _without_pads(self, tokens: Array, at: Array) -> tuple[Array, Array]:
        """tokens [N, T] and slots [N, M] as the decoder reads them; emitted pads take no position, so they move to the end."""
        if not self.strip_pads:
            return tokens, at
        real = tokens != self.pad
        places = jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0).astype(jnp.int32)
        order = jnp.argsort(~real, axis=-1, stable=True)
        return jnp.take_along_axis(tokens, order, axis=1), jnp.take_along_axis(places, at, axis=1)


def _picker(
    project_fn: Callable[[Array], Array] | None,
    chunk: int,
    specials: Specials,
    vocab_size: int,
    rules: MaskPredictRules,
) -> Callable[[Array], tuple[Array, Array]]:
    """Rows [N, M, ...] -> the likeliest allowed token [N, M] of each and its log-probability."""
    banned = (specials.pad, specials.bos, specials.mask) if rules.forbid_specials else ()
    banned += (specials.eos,) if rules.forbid_eos else ()

    def pick(rows: Array) -> tuple[Array, Array]:
        logits = rows if project_fn is None else project_fn(rows)
        best = argmax(logits + forbid(logits.shape[-1], banned, vocab_size))
        return best, log_probs_of(logits, best)

    def pick_all(rows: Array) -> tuple[Array, Array]:
        best, scores = by_chunks(pick, rows.reshape(-1, rows.shape[-1]), chunk=chunk)
        return best.reshape(rows.shape[:-1]), scores.reshape(rows.shape[:-1])

    return pick_all


def _stages(open_slots: list[int]) -> list[tuple[int, int]]:
    """Divides the passes into runs of one static shape; a new run begins where half of the slots suffice.

    Args:
      open_slots: how many slots may be masked before each pass, in falling order.

    Returns:
      (last pass, slots) of each run.
    """
    stages: list[tuple[int, int]] = []
    width = 0
    for number, slots in enumerate(open_slots, 1):
        if stages and slots > width // 2:
            stages[-1] = (number, width)
        else:
            width = max(slots, 1)
            stages.append((number, width))
    return stages


def _put_slots(values: Array, slots: Array, new: Array, where: Array) -> Array:
    """values [N, T] with new [N, M] at slots [N, M] where flagged."""
    rows = jnp.arange(values.shape[0])[:, None]
    return values.at[rows, slots].set(jnp.where(where, new, jnp.take_along_axis(values, slots, axis=1)))


def _ranks(scores: Array) -> Array:
    """The rank [N, T] of each slot by ascending score; of equal scores the lower position comes first."""
    return jnp.argsort(jnp.argsort(scores, axis=-1, stable=True), axis=-1, stable=True)


def _end_at_eos(tokens: Array, scores: Array, length: Array, specials: Specials) -> tuple[Array, Array, Array, Array]:
    """Cuts each candidate behind its first eos: tokens, scores, length [N, 1] and the slots [N, T] whose scores count."""
    slot = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
    first = jnp.argmax(tokens == specials.eos, axis=-1).astype(jnp.int32)[:, None]
    early = first < length - 1
    inner = (slot > 0) & jnp.where(early, slot <= first, slot < first)
    tokens = jnp.where(slot <= first, tokens, specials.pad)
    return tokens, jnp.where(inner, scores, 0.0), first + 1, inner


def _strip_pads(tokens: Array, scores: Array, pad: int) -> tuple[Array, Array, Array]:
    """tokens and scores [N, T] without the pads between tokens, and the lengths [N, 1] that remain."""
    real = tokens != pad
    order = jnp.argsort(~real, axis=-1, stable=True)
    scores = jnp.take_along_axis(jnp.where(real, scores, 0.0), order, axis=1)
    return jnp.take_along_axis(tokens, order, axis=1), scores, real.sum(axis=-1, keepdims=True, dtype=jnp.int32)
