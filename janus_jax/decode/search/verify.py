"""Speculative search: a draft is verified in one pass, and the output is that of greedy search.

A round takes the next tokens of a draft, feeds them to the verifying model and accepts the longest prefix that greedy search
would have emitted, and the token that greedy search emits behind it (Xia et al. 2023, SpecDec, whose relaxed acceptance is also
implemented; it is not lossless). A drafter (`search.drafters`) proposes the tokens; it makes a new draft when few tokens of the
old one are accepted. The costs of the passes decide how many drafted tokens are verified at once. After a whole draft that did
not pay, greedy steps follow, and more of them after each failure. Drafters whose drafts are free draft in each round of a search,
always with one width; between searches `DraftPolicy` says whether to draft at all.

Legend: B sentences, K drafts a sentence, N = B*K hypotheses of a batch, L longest hypothesis, W drafted tokens verified in a round, D
model width, V vocabulary columns (padded).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts
from janus_jax.decode.search.drafters import Drafter, Emitted
from janus_jax.decode.search.drafts import Acceptance, accepted
from janus_jax.decode.search.greedy import as_hypotheses
from janus_jax.decode.search.loop import Cache, GrowFn, run_in_stages
from janus_jax.decode.search.sampling import PickFn
from janus_jax.decode.search.vocab import argmax, log_probs_of
from janus_jax.types import Array, Hypotheses, Specials


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Passes:
    """The drafts of each pass, P passes at most. A pass emits the accepted tokens of its draft and one token more.

    Where the draft itself ends the output there is no token more: the last drafted token counts as that one.
    """

    drafted: Array  # [B, P, W] int32, -1 behind the end of a draft; a greedy step has none
    emitted: Array  # [B, P] int32, tokens that the pass emitted; 0: the sentence was finished
    count: Array  # [] int32, passes so far

    @classmethod
    def initial(cls, batch: int, limit: int, width: int) -> "Passes":
        """Before the first pass; each pass emits a token, so there are at most `limit`."""
        return cls(jnp.full((batch, limit, width), -1), jnp.zeros((batch, limit), jnp.int32), jnp.int32(0))

    def after(self, drafted: Array, emitted: Array) -> "Passes":
        """With one more pass: drafted [B, up to W], emitted [B]."""
        width = self.drafted.shape[-1] - drafted.shape[-1]
        drafted = jnp.pad(drafted, ((0, 0), (0, width)), constant_values=-1).astype(jnp.int32)
        return Passes(
            self.drafted.at[:, self.count].set(drafted), self.emitted.at[:, self.count].set(emitted), self.count + 1
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """Counts of a search, and its passes if they were asked for."""

    rounds: Array  # [B] int32
    drafts: Array  # [B] int32, rounds that made a new draft
    drafted: Array  # [B] int32, drafted tokens that were accepted, see `Passes`
    steps: Array  # [B] int32, greedy steps
    tokens: Array  # [B] int32, emitted, eos counted
    passes: Passes | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    tokens: Array  # [B, L]
    token_scores: Array  # [B, L]
    lengths: Array  # [B] int32, tokens emitted
    done: Array  # [B] bool
    draft: Any  # of the drafter
    redraft: Array  # [] bool, the next round makes a new draft
    policy: DraftPolicy
    statistics: Statistics
    cache: Cache

    @property
    def emitted(self) -> Emitted:
        """What was emitted so far."""
        return Emitted(self.tokens, self.lengths, self.done)


def speculative_search(
    drafter: Drafter,
    verify_fn: Callable[[Array, Cache], tuple[Array, Cache]],
    project_fn: Callable[[Array], Array],
    rewind_fn: Callable[[Cache, Array], Cache],
    reorder_fn: Callable[[Cache, Array], Cache],
    cache: Cache,
    *,
    max_lengths: Array,
    limit: int,
    specials: Specials,
    constraints: Constraints,
    costs: PassCosts,
    acceptance: Acceptance | None = None,
    pick_fn: PickFn | None = None,
    policy: DraftPolicy | None = None,
    drafted: bool = False,
    to_eos: bool = True,
    lenpen: float = 1.0,
    cached: int = 0,
    grow_fn: GrowFn | None = None,
    stages: Sequence[int] = (),
    trace: bool = False,
) -> tuple[Hypotheses, Statistics, DraftPolicy]:
    """Greedy search in fewer passes; to be called under `jax.jit`.

    Args:
      drafter: proposes tokens.
      verify_fn: feeds tokens [N, W+1] to the verifying model: the rows [N, W+1, D] that predict the successor of each, and
        the longer cache.
      project_fn: vocabulary logits [..., V] of rows [..., D].
      rewind_fn: the cache with `lengths` [N] tokens only.
      reorder_fn: reorders the hypotheses of a cache, each within its sentence.
      cache: of N hypotheses, before bos.
      max_lengths: [B] int32, most tokens of a hypothesis, eos counted; eos is forced there. 0: no hypothesis.
      limit: L, at least the largest of max_lengths.
      specials: ids of the special tokens.
      constraints: what may be emitted; no_repeat_ngram is not possible.
      costs: of the decoder passes, which decide when a draft is made.
      acceptance: which drafted tokens are accepted; by default those of greedy search.
      pick_fn: chooses the next tokens; by default the likeliest. With a `sampler` the output is that of sampling one token
        at a time with the same keys: a drafted token is accepted if it is the one that was drawn. That has the probability of
        the token under the model, as in speculative sampling (Leviathan et al. 2023, arXiv 2211.17192) of a sure draft.
      policy: state that an earlier search returned.
      drafted: the drafter starts with a draft.
      to_eos: a hypothesis ends in eos, which is forced at the longest length. False: it has max_lengths tokens, and the
        constraints must forbid eos.
      lenpen: as in `greedy_search`.
      cached: tokens before bos in the cache (ar_start eos).
      grow_fn, stages: as in `beam.beam_search`.
      trace: keep the drafts of each pass.

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
        drafter, verify_fn, project_fn, rewind_fn, reorder_fn, max_lengths, limit, specials, constraints, costs,
        acceptance or Acceptance(), pick_fn, to_eos, cached,
    )  # fmt: skip
    policy = policy or DraftPolicy.initial()
    none = jnp.zeros(max_lengths.shape[0], jnp.int32)
    passes = Passes.initial(max_lengths.shape[0], limit, costs.widths[-1]) if trace else None
    state = _State(
        tokens=jnp.full((max_lengths.shape[0], limit), specials.pad, jnp.int32),
        token_scores=jnp.zeros((max_lengths.shape[0], limit), jnp.float32),
        lengths=none,
        done=max_lengths <= 0,
        draft=drafter.start(),
        redraft=jnp.bool_(not drafted and not drafter.free),
        policy=policy if drafter.free else policy.with_expected(costs),
        statistics=Statistics(none, none, none, none, none, passes),
        cache=cache,
    )

    def loop(s: _State, goes_on: Callable[[_State], Array]) -> _State:
        if drafter.free:
            return lax.while_loop(goes_on, search.round, s)
        can_pay = costs.can_pay()

        def drafting(s: _State) -> Array:
            return can_pay & (s.policy.pause <= 0) & drafter.ready(s.draft, s.emitted)

        # Two alternating loops, not one loop with a branch: a loop updates the cache in place, a branch would copy it.
        def both(s: _State) -> _State:
            s = lax.while_loop(lambda s: goes_on(s) & ~drafting(s), search.greedy_step, s)
            return lax.while_loop(lambda s: goes_on(s) & drafting(s), search.round, s)

        return lax.while_loop(goes_on, both, s)

    reach = costs.widths[-1] + 1  # tokens that a round adds to the cache, before some are rejected
    state = run_in_stages(state, loop, lambda s: jnp.max(s.lengths) + reach, limit + reach, grow_fn, stages)
    hypotheses = as_hypotheses(state.tokens, state.lengths, state.token_scores, lenpen)
    counts, policy = replace(state.statistics, tokens=state.lengths), state.policy
    if drafter.free:
        accepted = counts.drafted.sum() / jnp.maximum(counts.rounds.sum(), 1)
        policy = policy.after_free_search(costs, counts.rounds.max(), accepted, counts.tokens.max())
    return hypotheses, counts, policy


@dataclass(frozen=True)
class _Search:
    """Arguments that stay the same during a search; see `speculative_search`."""

    drafter: Drafter
    verify_fn: Callable[[Array, Cache], tuple[Array, Cache]]
    project_fn: Callable[[Array], Array]
    rewind_fn: Callable[[Cache, Array], Cache]
    reorder_fn: Callable[[Cache, Array], Cache]
    max_lengths: Array  # [B]
    limit: int
    specials: Specials
    constraints: Constraints
    costs: PassCosts
    acceptance: Acceptance
    pick_fn: PickFn | None
    to_eos: bool
    cached: int

    def greedy_step(self, s: _State) -> _State:
        """Emits one token greedily; a whole draft is out of date then."""
        drafts = self.drafter.count
        rows, cache = self.verify_fn(jnp.repeat(s.emitted.last(self.specials), drafts, axis=0), s.cache)
        rows = rows[::drafts]
        logits = self.project_fn(rows)
        token, _ = self._greedy_choice(logits, s.lengths[:, None], self.max_lengths[:, None])
        counts = jnp.where(s.done, 0, 1)
        statistics = replace(s.statistics, steps=s.statistics.steps + counts)
        policy = replace(s.policy, pause=jnp.maximum(s.policy.pause - 1, 0))
        s = replace(s, policy=policy, redraft=jnp.bool_(True), statistics=statistics)
        return self._emit(s, token, log_probs_of(logits, token), counts, cache, token[:, :0])

    def round(self, s: _State) -> _State:
        """Makes a draft if one is needed, verifies it, and updates the policy."""
        if not self.drafter.free:
            draft = lax.cond(s.redraft, lambda: self.drafter.renew(s.draft, s.emitted), lambda: s.draft)
            s = replace(s, draft=draft)
        width = self.costs.best_width(s.policy.expected, s.redraft)
        branches = [lambda s, tokens=tokens: self._verify(s, tokens) for tokens in self.costs.widths]
        after = lax.switch(width, branches, s) if len(branches) > 1 else branches[0](s)
        count = jnp.where(s.done, 0, after.lengths - s.lengths - 1)
        mean = count.sum() / jnp.maximum((~s.done).sum(), 1)
        policy, redraft = s.policy, s.redraft
        if not self.drafter.free:
            left = self.drafter.left(after.draft, after.emitted)
            policy, redraft = s.policy.after_round(self.costs, width, s.redraft, mean, left)
        statistics = replace(
            after.statistics,
            rounds=s.statistics.rounds + ~s.done,
            drafts=s.statistics.drafts + (~s.done & s.redraft),
            drafted=s.statistics.drafted + count,
        )
        return replace(after, redraft=redraft, policy=policy, statistics=statistics)

    def _greedy_choice(self, logits: Array, step: Array, max_lengths: Array) -> tuple[Array, Array]:
        """The token of the search after `step` [...] tokens, given logits [..., V]; and the logits, -inf at forbidden tokens."""
        allowed = logits + self.constraints.bias(logits.shape[-1], step, self.specials)
        forced = self.to_eos & (step + 1 >= max_lengths)
        chosen = argmax(allowed) if self.pick_fn is None else self.pick_fn(allowed, step)
        return jnp.where(forced, self.specials.eos, chosen), allowed

    def _verify(self, s: _State, width: int) -> _State:
        """Feeds `width` drafted tokens, and emits the accepted ones of the best draft."""
        drafted, is_drafted = self.drafter.block(s.draft, s.emitted, width)
        batch, drafts = drafted.shape[:2]
        recorded = jnp.where(is_drafted, drafted, -1)
        drafted = jnp.where(is_drafted, drafted, self.specials.eos)
        last = jnp.broadcast_to(s.emitted.last(self.specials)[:, None], (batch, drafts, 1))
        fed = jnp.concatenate([last, drafted], axis=-1)
        rows, cache = self.verify_fn(fed.reshape(batch * drafts, -1), s.cache)
        rows = rows.reshape(batch, drafts, width + 1, -1)
        logits = self.project_fn(rows)
        slot = s.lengths[:, None, None] + jnp.arange(width + 1)  # of the tokens fed: slot t holds token t - 1
        longest = self.max_lengths[:, None, None]
        greedy, allowed = self._greedy_choice(logits, slot, longest)
        at_end = self.to_eos & (slot[..., :-1] + 1 >= longest)
        is_accepted = accepted(allowed[..., :-1, :], greedy[..., :-1], drafted, at_end, self.acceptance)
        kept = jnp.cumprod(is_accepted & is_drafted, axis=-1).sum(axis=-1)
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

        counts = of_best(counts)
        row = jnp.take_along_axis(of_best(rows), (counts - 1)[:, None, None], axis=1)[:, 0]
        counts = jnp.where(s.done, 0, counts)
        s = self._emit(s, of_best(new), of_best(log_probs_of(logits, new)), counts, cache, of_best(recorded))
        return replace(s, draft=self.drafter.after(s.draft, s.emitted, row))

    def _emit(self, s: _State, new: Array, scores: Array, counts: Array, cache: Cache, drafted: Array) -> _State:
        """Appends the first `counts` [B] of new [B, W+1], of which drafted [B, W] were proposed.

        A hypothesis that emits eos, or is full, is done.
        """
        counts = jnp.minimum(counts, jnp.maximum(self.max_lengths - s.lengths, 0))
        at = jnp.arange(self.limit) - s.lengths[:, None]
        fresh = (at >= 0) & (at < counts[:, None])
        at = jnp.clip(at, 0, new.shape[1] - 1)
        tokens = jnp.where(fresh, jnp.take_along_axis(new, at, axis=1), s.tokens)
        length = s.lengths + counts
        statistics = s.statistics
        if statistics.passes is not None:
            statistics = replace(statistics, passes=statistics.passes.after(drafted, counts))
        return replace(
            s,
            statistics=statistics,
            tokens=tokens,
            token_scores=jnp.where(fresh, jnp.take_along_axis(scores, at, axis=1), s.token_scores),
            lengths=length,
            done=s.done | jnp.any(fresh & (tokens == self.specials.eos), axis=1) | (length >= self.max_lengths),
            cache=self.rewind_fn(cache, jnp.repeat(self.cached + length, self.drafter.count)),
        )
