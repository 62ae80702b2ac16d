"""Speculative search: a draft is verified in one pass, and the output is that of greedy search.

A round makes a draft of the rest of the target, feeds it to the verifying model and accepts the longest prefix that greedy search
would have emitted, and the token that greedy search emits behind it (Xia et al. 2023, SpecDec, whose relaxed acceptance is also
implemented; it is not lossless). The rest of the draft is aligned with the emitted tokens and verified in the next round; a new
draft is computed when few tokens of the old one are accepted. The costs of the passes decide how many drafted tokens are verified at once.
After a draft that did not pay, greedy steps follow, and more of them after each failure.

Legend: B sentences, K drafts a sentence, N = B*K hypotheses of a batch, T slots of a draft (bos and eos counted), L longest hypothesis, W
drafted tokens verified in a round, V vocabulary columns (padded).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts
from janus_jax.decode.search.drafts import REACH, Acceptance, accepted, realign, without_stutter
from janus_jax.decode.search.greedy import as_hypotheses
from janus_jax.decode.search.loop import Cache
from janus_jax.decode.search.vocab import argmax, log_probs_of
from janus_jax.types import Array, Hypotheses, Specials


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """Counts of a search."""

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
    draft: Array  # [B, K, T] int32, emitted tokens and the draft behind them
    draft_lengths: Array  # [B, K] int32
    redraft: Array  # [] bool, the next round makes a new draft
    policy: DraftPolicy
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
    costs: PassCosts,
    acceptance: Acceptance | None = None,
    policy: DraftPolicy | None = None,
    draft: Array | None = None,
    realign_drafts: bool = True,
    to_eos: bool = True,
    lenpen: float = 1.0,
    cached: int = 0,
) -> tuple[Hypotheses, Statistics, DraftPolicy]:
    """Greedy search in fewer passes; to be called under `jax.jit`.

    Args:
      draft_fn: fills the masks of targets [B, K, T] of lengths [B, K].
      verify_fn: feeds tokens [N, W+1] to the verifying model: logits [N, W+1, V] of the successor of each, and the longer
        cache.
      rewind_fn: the cache with `lengths` [N] tokens only.
      reorder_fn: reorders the hypotheses of a cache, each within its sentence.
      cache: of N hypotheses, before bos.
      lengths: [B, K] int32, lengths of the drafts to try, bos and eos counted, at most T.
      slots: T.
      max_lengths: [B] int32, most tokens of a hypothesis, eos counted; eos is forced there. 0: no hypothesis.
      limit: L, at least the largest of max_lengths.
      specials: ids of the special tokens.
      constraints: what may be emitted; no_repeat_ngram is not possible.
      costs: of the decoder passes, which decide when a draft is made.
      acceptance: which drafted tokens are accepted; by default those of greedy search.
      policy: state that an earlier search returned.
      draft: [B, K, T] int32, the first draft, if it is made already.
      realign_drafts: drafts may be aligned with the emitted tokens, and their repeats be removed. False: each drafted
        token belongs to its slot.
      to_eos: a hypothesis ends in eos, which is forced at the longest length. False: it has max_lengths tokens, and the
        constraints must forbid eos.
      lenpen: as in `greedy_search`.
      cached: tokens before bos in the cache (ar_start eos).

    Returns:
      Hypotheses [B, 1, L], counts, and the policy's state for the next search.

    Raises:
      ValueError: no_repeat_ngram is set.
    """
    if constraints.no_repeat_ngram:
        raise ValueError(
            "no_repeat_ngram: speculative search verifies tokens side by side and cannot watch n-grams; set it to 0"
        )
    search = _Search(
        draft_fn, verify_fn, rewind_fn, reorder_fn, lengths, slots, max_lengths, limit, specials, constraints, costs,
        acceptance or Acceptance(), realign_drafts, to_eos, cached,
    )  # fmt: skip
    policy = policy or DraftPolicy.initial()
    none = jnp.zeros(lengths.shape[0], jnp.int32)
    state = _State(
        tokens=jnp.full((lengths.shape[0], limit), specials.pad, jnp.int32),
        token_scores=jnp.zeros((lengths.shape[0], limit), jnp.float32),
        lengths=none,
        done=max_lengths <= 0,
        draft=jnp.zeros((*lengths.shape, slots), jnp.int32) if draft is None else draft,
        draft_lengths=lengths.astype(jnp.int32),
        redraft=jnp.bool_(draft is None),
        policy=replace(policy, expected=jnp.where(policy.expected < 0, jnp.float32(costs.widths[0]), policy.expected)),
        statistics=Statistics(none, none, none, none, none),
        cache=cache,
    )
    can_pay = costs.can_pay()

    def drafting(s: _State) -> Array:
        return can_pay & (s.policy.pause <= 0) & jnp.any(~s.done & (s.lengths + 3 <= slots))

    # Two alternating loops, not one loop with a branch: a loop updates the cache in place, a branch would copy it.
    def body(s: _State) -> _State:
        s = lax.while_loop(lambda s: ~jnp.all(s.done) & ~drafting(s), search.greedy_step, s)
        return lax.while_loop(lambda s: ~jnp.all(s.done) & drafting(s), search.round, s)

    state = lax.while_loop(lambda s: ~jnp.all(s.done), body, state)
    hypotheses = as_hypotheses(state.tokens, state.lengths, state.token_scores, lenpen)
    return hypotheses, replace(state.statistics, tokens=state.lengths), state.policy


@dataclass(frozen=True)
class _Search:
    """Arguments that stay the same during a search; see `speculative_search`."""

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
    costs: PassCosts
    acceptance: Acceptance
    realign_drafts: bool
    to_eos: bool
    cached: int

    def greedy_step(self, s: _State) -> _State:
        """Emits one token greedily; the draft is out of date then."""
        drafts = self.draft_lengths.shape[1]
        logits, cache = self.verify_fn(jnp.repeat(self._last(s), drafts, axis=0), s.cache)
        logits = logits[::drafts]
        token, _ = self._greedy_choice(logits, s.lengths[:, None], self.max_lengths[:, None])
        counts = jnp.where(s.done, 0, 1)
        statistics = replace(s.statistics, steps=s.statistics.steps + counts)
        policy = replace(s.policy, pause=jnp.maximum(s.policy.pause - 1, 0))
        s = replace(s, policy=policy, redraft=jnp.bool_(True), statistics=statistics)
        return self._emit(s, token, log_probs_of(logits, token), counts, cache)

    def round(self, s: _State) -> _State:
        """Makes a draft if one is needed, verifies it, and updates the policy."""
        draft, draft_lengths = lax.cond(s.redraft, lambda: self._drafted(s), lambda: (s.draft, s.draft_lengths))
        s = replace(s, draft=draft, draft_lengths=draft_lengths)
        width = self.costs.best_width(s.policy.expected, s.redraft)
        branches = [lambda s, tokens=tokens: self._verify(s, tokens) for tokens in self.costs.widths]
        after = lax.switch(width, branches, s) if len(branches) > 1 else branches[0](s)
        count = jnp.where(s.done, 0, after.lengths - s.lengths - 1)
        mean = count.sum() / jnp.maximum((~s.done).sum(), 1)
        left = jnp.any(~after.done[:, None] & (after.draft_lengths > after.lengths[:, None] + 1))
        policy, redraft = s.policy.after_round(self.costs, width, s.redraft, mean, left)
        statistics = replace(
            s.statistics,
            rounds=s.statistics.rounds + ~s.done,
            drafts=s.statistics.drafts + (~s.done & s.redraft),
            drafted=s.statistics.drafted + count,
        )
        return replace(after, redraft=redraft, policy=policy, statistics=statistics)

    def _drafted(self, s: _State) -> tuple[Array, Array]:
        """A new draft and its lengths; if drafts may be realigned, without repeats."""
        start, length = self._targets(s)
        draft = self.draft_fn(start, length)
        if self.realign_drafts:
            return without_stutter(draft, length, s.lengths)
        return draft, length

    def _targets(self, s: _State) -> tuple[Array, Array]:
        """Emitted tokens, masks, eos [B, K, T], and their lengths [B, K]."""
        length = jnp.clip(jnp.maximum(self.draft_lengths, s.lengths[:, None] + 3), 2, self.slots)
        slot = jnp.arange(self.slots)
        rest = jnp.where(slot < length[..., None] - 1, self.specials.mask, self.specials.eos)
        rest = jnp.where(slot < length[..., None], rest, self.specials.pad)
        return jnp.where(slot <= s.lengths[:, None, None], self._emitted(s), rest).astype(jnp.int32), length

    def _emitted(self, s: _State) -> Array:
        """Bos and the emitted tokens [B, 1, T]; slots behind them are not read."""
        behind = max(self.slots - 1 - self.limit, 0)
        return jnp.pad(s.tokens, ((0, 0), (1, behind)), constant_values=self.specials.bos)[:, None, : self.slots]

    def _last(self, s: _State) -> Array:
        """The token to feed next [B, 1]; eos for finished hypotheses, since pad has no position."""
        last = jnp.take_along_axis(s.tokens, jnp.maximum(s.lengths - 1, 0)[:, None], axis=1)
        last = jnp.where(s.lengths[:, None] == 0, self.specials.bos, last)
        return jnp.where(s.done[:, None], self.specials.eos, last)

    def _greedy_choice(self, logits: Array, step: Array, max_lengths: Array) -> tuple[Array, Array]:
        """The token of greedy search after `step` [...] tokens, given logits [..., V]; and the logits, -inf at forbidden tokens."""
        allowed = logits + self.constraints.bias(logits.shape[-1], step, self.specials)
        forced = self.to_eos & (step + 1 >= max_lengths)
        return jnp.where(forced, self.specials.eos, argmax(allowed)), allowed

    def _verify(self, s: _State, width: int) -> _State:
        """Feeds the first `width` drafted tokens, and emits the accepted ones of the best draft."""
        filled, length = s.draft, s.draft_lengths
        batch, drafts, slots = filled.shape
        slot = s.lengths[:, None, None] + jnp.arange(width + 1)  # of the tokens fed: slot t holds token t - 1
        block = jnp.take_along_axis(filled, jnp.clip(slot, 0, slots - 1), axis=2)
        fed = jnp.where(slot < length[..., None], block, self.specials.eos)
        fed = fed.at[..., 0].set(self._last(s))  # even if the draft is too short for it
        logits, cache = self.verify_fn(fed.reshape(batch * drafts, -1), s.cache)
        logits = logits.reshape(batch, drafts, width + 1, -1)
        longest = self.max_lengths[:, None, None]
        greedy, allowed = self._greedy_choice(logits, slot, longest)
        drafted, at_end = fed[..., 1:], self.to_eos & (slot[..., :-1] + 1 >= longest)
        is_accepted = accepted(allowed[..., :-1, :], greedy[..., :-1], drafted, at_end, self.acceptance)
        kept = jnp.cumprod(is_accepted & (slot[..., 1:] < length[..., None]), axis=-1).sum(axis=-1)
        index = jnp.arange(width + 1)
        new = jnp.where(index < kept[..., None], jnp.pad(drafted, ((0, 0), (0, 0), (0, 1))), greedy)
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
        draft, length = realign(filled, length, self._emitted(s), s.lengths, reach=REACH if self.realign_drafts else 0)
        return replace(s, draft=draft, draft_lengths=length)

    def _emit(self, s: _State, new: Array, scores: Array, counts: Array, cache: Cache) -> _State:
        """Appends the first `counts` [B] of new [B, W+1]; a hypothesis that emits eos, or is full, is done."""
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
