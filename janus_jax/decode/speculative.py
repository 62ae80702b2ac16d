"""Speculative search: a draft is verified token by token in one pass; the output is greedy search's.

A round drafts the rest of the target given the tokens kept so far, feeds the draft to the model that decides, keeps the longest
prefix that greedy search would have emitted, and the one token after it that it would emit instead (Xia et al. 2023, SpecDec,
whose relaxed acceptance is here too, and is not lossless). What is left of the draft, moved to where it fits behind that token,
is verified in the next round; only when little of it stands is a new one made. Costs decide how many drafted tokens are worth
verifying, and where drafts fail plain greedy steps follow, ever more of them.

Legend: B sentences, K drafts a sentence, N = B*K rows, T slots of a draft (bos and eos counted), L longest hypothesis, W
drafted tokens verified in a round, V vocabulary columns (padded).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.costs import Costs, Outlook
from janus_jax.decode.drafts import REACH, Acceptance, accepted, behind, without_stutter
from janus_jax.decode.greedy import as_hypotheses
from janus_jax.decode.loop import Cache, Constraints
from janus_jax.decode.vocab import argmax, log_probs_of
from janus_jax.types import Array, Hypotheses, Specials


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """What a search did."""

    rounds: Array  # [B] int32
    drafts: Array  # [B] int32, rounds that made a new draft
    drafted: Array  # [B] int32, drafted tokens that were accepted
    steps: Array  # [B] int32, greedy steps
    tokens: Array  # [B] int32, emitted, eos counted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    tokens: Array  # [B, L]
    token_scores: Array  # [B, L]
    lengths: Array  # [B] int32, tokens emitted
    done: Array  # [B] bool
    draft: Array  # [B, K, T] int32, what is emitted and the draft behind it
    draft_lengths: Array  # [B, K] int32
    redraft: Array  # [] bool, the next round makes a new draft
    outlook: Outlook
    statistics: Statistics
    cache: Cache


def speculative_search(
    draft_fn: Callable[[Array, Array], Array],
    verify_fn: Callable[[Array, Cache], tuple[Array, Cache]],
    rewind_fn: Callable[[Cache, Array], Cache],
    reorder_fn: Callable[[Cache, Array], Cache],
    cache: Cache,
    *,
    lengths: Array,
    slots: int,
    max_lengths: Array,
    limit: int,
    specials: Specials,
    constraints: Constraints,
    costs: Costs,
    acceptance: Acceptance | None = None,
    outlook: Outlook | None = None,
    draft: Array | None = None,
    realign: bool = True,
    to_eos: bool = True,
    lenpen: float = 1.0,
    cached: int = 0,
) -> tuple[Hypotheses, Statistics, Outlook]:
    """Greedy search in fewer passes; to be called under `jax.jit`.

    Args:
      draft_fn: fills the masks of targets [B, K, T] of lengths [B, K].
      verify_fn: feeds tokens [N, W+1] to the model that decides: logits [N, W+1, V] of each one's successor, and the longer cache.
      rewind_fn: the cache with `lengths` [N] tokens only.
      reorder_fn: reorders the rows of a cache within their sentence.
      cache: for N rows, before bos.
      lengths: [B, K] int32, lengths of the drafts to try, bos and eos counted, at most T.
      slots: T.
      max_lengths: [B] int32, most tokens of a hypothesis, eos counted, where eos is forced; 0: an empty row.
      limit: L, at least the largest of max_lengths.
      specials: ids of the special tokens.
      constraints: what may be emitted; n-grams cannot be watched here.
      costs: what passes cost, which settles when drafting pays.
      acceptance: which drafted tokens are kept; by default those of greedy search.
      outlook: that an earlier search has left.
      draft: [B, K, T] int32, the first draft, where there is one already.
      realign: a draft may be moved to fit behind what was emitted, and its repeats be taken out; False: each drafted token
        belongs to its slot.
      to_eos: a hypothesis ends in eos, which is forced at the longest length; False: it has max_lengths tokens, and the
        constraints have to forbid eos.
      lenpen: as in `greedy_search`.
      cached: tokens that the cache holds already (an eos start).

    Returns:
      Hypotheses [B, 1, L], what was done, and the outlook for the next search.

    Raises:
      ValueError: no_repeat_ngram is set.
    """
    if constraints.no_repeat_ngram:
        raise ValueError(
            "no_repeat_ngram: speculative search verifies tokens side by side and cannot watch n-grams; set it to 0"
        )
    search = _Search(
        draft_fn, verify_fn, rewind_fn, reorder_fn, lengths, slots, max_lengths, limit, specials, constraints, costs,
        acceptance or Acceptance(), realign, to_eos, cached,
    )  # fmt: skip
    outlook = outlook or Outlook.unknown()
    none = jnp.zeros(lengths.shape[0], jnp.int32)
    state = _State(
        tokens=jnp.full((lengths.shape[0], limit), specials.pad, jnp.int32),
        token_scores=jnp.zeros((lengths.shape[0], limit), jnp.float32),
        lengths=none,
        done=max_lengths <= 0,
        draft=jnp.zeros((*lengths.shape, slots), jnp.int32) if draft is None else draft,
        draft_lengths=lengths.astype(jnp.int32),
        redraft=jnp.bool_(draft is None),
        outlook=replace(
            outlook, expected=jnp.where(outlook.expected < 0, jnp.float32(costs.widths[0]), outlook.expected)
        ),
        statistics=Statistics(none, none, none, none, none),
        cache=cache,
    )
    can_pay = costs.can_pay()

    def drafting(s: _State) -> Array:
        return can_pay & (s.outlook.pause <= 0) & jnp.any(~s.done & (s.lengths + 3 <= slots))

    # Two loops in turns and not a branch in one: a loop changes the cache where it lies, a branch would copy it.
    def body(s: _State) -> _State:
        s = lax.while_loop(lambda s: ~jnp.all(s.done) & ~drafting(s), search.plain, s)
        return lax.while_loop(lambda s: ~jnp.all(s.done) & drafting(s), search.round, s)

    state = lax.while_loop(lambda s: ~jnp.all(s.done), body, state)
    found = as_hypotheses(state.tokens, state.lengths, state.token_scores, lenpen)
    return found, replace(state.statistics, tokens=state.lengths), state.outlook


@dataclass(frozen=True)
class _Search:
    """What stays the same during a search; see `speculative_search`."""

    draft_fn: Callable[[Array, Array], Array]
    verify_fn: Callable[[Array, Cache], tuple[Array, Cache]]
    rewind_fn: Callable[[Cache, Array], Cache]
    reorder_fn: Callable[[Cache, Array], Cache]
    draft_lengths: Array  # [B, K]
    slots: int
    max_lengths: Array  # [B]
    limit: int
    specials: Specials
    constraints: Constraints
    costs: Costs
    acceptance: Acceptance
    realign: bool
    to_eos: bool
    cached: int

    def plain(self, s: _State) -> _State:
        """A greedy step; a draft is out of date behind it."""
        drafts = self.draft_lengths.shape[1]
        logits, cache = self.verify_fn(jnp.repeat(self._last(s), drafts, axis=0), s.cache)
        logits = logits[::drafts]
        token, _ = self._own_choice(logits, s.lengths[:, None], self.max_lengths[:, None])
        counts = jnp.where(s.done, 0, 1)
        did = replace(s.statistics, steps=s.statistics.steps + counts)
        outlook = replace(s.outlook, pause=jnp.maximum(s.outlook.pause - 1, 0))
        s = replace(s, outlook=outlook, redraft=jnp.bool_(True), statistics=did)
        return self._emit(s, token, log_probs_of(logits, token), counts, cache)

    def round(self, s: _State) -> _State:
        """Draft if need be, and verify; then how to go on."""
        draft, draft_lengths = lax.cond(s.redraft, lambda: self._drafted(s), lambda: (s.draft, s.draft_lengths))
        s = replace(s, draft=draft, draft_lengths=draft_lengths)
        width = self.costs.best_width(s.outlook.expected, s.redraft)
        branches = [lambda s, tokens=tokens: self._verify(s, tokens) for tokens in self.costs.widths]
        after = lax.switch(width, branches, s) if len(branches) > 1 else branches[0](s)
        kept = jnp.where(s.done, 0, after.lengths - s.lengths - 1)
        mean = kept.sum() / jnp.maximum((~s.done).sum(), 1)
        left = jnp.any(~after.done[:, None] & (after.draft_lengths > after.lengths[:, None] + 1))
        outlook, redraft = s.outlook.after_round(self.costs, width, s.redraft, mean, left)
        did = replace(
            s.statistics,
            rounds=s.statistics.rounds + ~s.done,
            drafts=s.statistics.drafts + (~s.done & s.redraft),
            drafted=s.statistics.drafted + kept,
        )
        return replace(after, redraft=redraft, outlook=outlook, statistics=did)

    def _drafted(self, s: _State) -> tuple[Array, Array]:
        """A new draft; if it may be mended, without a token right after itself (drafts stutter, AR does not)."""
        start, length = self._targets(s)
        draft = self.draft_fn(start, length)
        if self.realign:
            return without_stutter(draft, length, s.lengths)
        return draft, length

    def _targets(self, s: _State) -> tuple[Array, Array]:
        """[B, K, T] what is emitted, masks, eos; and their lengths [B, K]."""
        length = jnp.clip(jnp.maximum(self.draft_lengths, s.lengths[:, None] + 3), 2, self.slots)
        slot = jnp.arange(self.slots)
        rest = jnp.where(slot < length[..., None] - 1, self.specials.mask, self.specials.eos)
        rest = jnp.where(slot < length[..., None], rest, self.specials.pad)
        return jnp.where(slot <= s.lengths[:, None, None], self._emitted(s), rest).astype(jnp.int32), length

    def _emitted(self, s: _State) -> Array:
        """[B, 1, T] bos and what is emitted; what stands behind it means nothing."""
        behind = max(self.slots - 1 - self.limit, 0)
        return jnp.pad(s.tokens, ((0, 0), (1, behind)), constant_values=self.specials.bos)[:, None, : self.slots]

    def _last(self, s: _State) -> Array:
        """[B, 1] the token to feed next; of finished rows eos, since pad would have no position."""
        last = jnp.take_along_axis(s.tokens, jnp.maximum(s.lengths - 1, 0)[:, None], axis=1)
        last = jnp.where(s.lengths[:, None] == 0, self.specials.bos, last)
        return jnp.where(s.done[:, None], self.specials.eos, last)

    def _own_choice(self, logits: Array, step: Array, max_lengths: Array) -> tuple[Array, Array]:
        """What greedy search emits after `step` [...] tokens, given logits [..., V]; and the logits with -inf at what it may not."""
        allowed = logits + self.constraints.bias(logits.shape[-1], step, self.specials)
        forced = self.to_eos & (step + 1 >= max_lengths)
        return jnp.where(forced, self.specials.eos, argmax(allowed)), allowed

    def _verify(self, s: _State, width: int) -> _State:
        """Feeds the first `width` drafted tokens, and keeps what stands of the best draft."""
        filled, length = s.draft, s.draft_lengths
        batch, drafts, slots = filled.shape
        slot = s.lengths[:, None, None] + jnp.arange(width + 1)  # of the tokens fed: slot t holds token t - 1
        block = jnp.take_along_axis(filled, jnp.clip(slot, 0, slots - 1), axis=2)
        fed = jnp.where(slot < length[..., None], block, self.specials.eos)
        fed = fed.at[..., 0].set(self._last(s))  # whether or not the draft has room for it
        logits, cache = self.verify_fn(fed.reshape(batch * drafts, -1), s.cache)
        logits = logits.reshape(batch, drafts, width + 1, -1)
        longest = self.max_lengths[:, None, None]
        own, allowed = self._own_choice(logits, slot, longest)
        drafted, at_end = fed[..., 1:], self.to_eos & (slot[..., :-1] + 1 >= longest)
        stands = accepted(allowed[..., :-1, :], own[..., :-1], drafted, at_end, self.acceptance)
        kept = jnp.cumprod(stands & (slot[..., 1:] < length[..., None]), axis=-1).sum(axis=-1)
        index = jnp.arange(width + 1)
        new = jnp.where(index < kept[..., None], jnp.pad(drafted, ((0, 0), (0, 0), (0, 1))), own)
        is_eos = (new == self.specials.eos) & (index <= kept[..., None])
        counts = jnp.where(jnp.any(is_eos, axis=-1), jnp.argmax(is_eos, axis=-1), kept) + 1
        best = jnp.argmax(counts, axis=1)
        if drafts > 1:
            cache = self.reorder_fn(cache, jnp.repeat(jnp.arange(batch) * drafts + best, drafts))

        def of_best(values: Array) -> Array:
            at = best.reshape(batch, *(1,) * (values.ndim - 1))
            return jnp.take_along_axis(values, at, axis=1)[:, 0]

        counts = jnp.where(s.done, 0, of_best(counts))
        s = self._emit(s, of_best(new), of_best(log_probs_of(logits, new)), counts, cache)
        draft, length = behind(filled, length, self._emitted(s), s.lengths, reach=REACH if self.realign else 0)
        return replace(s, draft=draft, draft_lengths=length)

    def _emit(self, s: _State, new: Array, scores: Array, counts: Array, cache: Cache) -> _State:
        """Appends the first `counts` [B] of new [B, W+1]; a row that emits eos, or is full, is done."""
        counts = jnp.minimum(counts, jnp.maximum(self.max_lengths - s.lengths, 0))
        at = jnp.arange(self.limit) - s.lengths[:, None]
        fresh = (at >= 0) & (at < counts[:, None])
        at = jnp.clip(at, 0, new.shape[1] - 1)
        tokens = jnp.where(fresh, jnp.take_along_axis(new, at, axis=1), s.tokens)
        length = s.lengths + counts
        return replace(
            s,
            tokens=tokens,
            token_scores=jnp.where(fresh, jnp.take_along_axis(scores, at, axis=1), s.token_scores),
            lengths=length,
            done=s.done | jnp.any(fresh & (tokens == self.specials.eos), axis=1) | (length >= self.max_lengths),
            cache=self.rewind_fn(cache, jnp.repeat(self.cached + length, self.draft_lengths.shape[1])),
        )
