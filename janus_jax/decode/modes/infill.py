"""Mode infill: the gaps of a target, filled by AUX rows, p(gap tokens | source, visible tokens), left to right in few passes.

AUX rows attend to all visible tokens and to the gap tokens before their own: they are an autoregressive model of the gaps
(docs/method.md). The NAR rows draft all gaps at once, and a round verifies the draft in one pass.

Legend: B sentences of a batch, T target slots, M gaps at most, V vocabulary columns.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.decode.modes.drafting import (
    Bound,
    acceptance_of,
    costs_of,
    costs_of_passes,
    policy_of,
    statistics_of,
    widths_to_verify,
)
from janus_jax.decode.modes.filling import FillSettings, fill, fill_settings
from janus_jax.decode.search.candidates import MaskPredictRules
from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts
from janus_jax.decode.search.drafters import WholeDrafts
from janus_jax.decode.search.drafts import Acceptance
from janus_jax.decode.search.verify import Statistics, speculative_search
from janus_jax.decode.search.vocab import argmax, forbid, log_probs_of
from janus_jax.decode.types import DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Array, Hypotheses, Params, Specials


def run(request: DecodeRequest) -> DecodeResult:
    """The likeliest token of each gap in turn by AUX rows; or, if `request.filling` holds the tokens, their scores."""
    net, params, settings = request.net, request.params, request.decode.infill
    start = jnp.asarray(request.start)
    # M is one of two sizes, so that little is compiled.
    slots = start.shape[1]
    gaps = (request.start == net.specials.mask).sum(axis=1).max(initial=0)
    limit = slots // 2 if gaps <= slots // 2 else slots
    if request.filling is not None:
        filling = np.zeros((len(start), limit), np.int32)
        filling[:, : request.filling.shape[1]] = request.filling[:, :limit]
        hypotheses = _run_scores(params, request.source, start, filling, net=net, limit=limit)
        return DecodeResult(hypotheses, {"passes": jnp.ones(len(start), jnp.int32)})
    filling = fill_settings(request.decode, settings.draft_passes, MaskPredictRules.GAPS)
    binding = Infilling(net, filling, limit)
    arrays = (params, request.source, start)
    widths, shapes = widths_to_verify(limit), (request.source.shape, start.shape)
    costs = costs_of(settings, widths, binding, shapes, lambda: costs_of_passes(binding, arrays, widths))
    hypotheses, counts, policy = _run_infill(
        arrays,
        costs,
        policy_of(request.policy, settings),
        binding=binding,
        acceptance=acceptance_of(settings),
    )
    # The pass before the search computes the NAR rows, which are the first draft.
    return DecodeResult(hypotheses, statistics_of(counts, settings.draft_passes, before=1), policy=policy)


class _Gaps:
    """A batch of targets with gaps, and the model bound to it."""

    def __init__(self, net: Janus, params: Params, source: Array, start: Array, limit: int):
        self.net, self.params, self.start, self.limit = net, params, constrain(start, BATCH), limit
        self.encoded = net.encode(params, source)
        self.projected = net.project_source(params, self.encoded)
        self.nar, self.cache = net.init_gaps(params, self.encoded, self.start, limit, self.projected)
        self.count = self.cache.masked_count
        self.is_gap = jnp.arange(limit) < self.count[:, None]

    def step(self, tokens: Array, cache: object) -> tuple[Array, object]:
        """The rows [B, k, D] that predict the successors of tokens [B, k] in the gaps, and the longer cache."""
        return self.net.aux_step(self.params, tokens, cache)

    def project(self, rows: Array) -> Array:
        """Vocabulary logits of rows."""
        return self.net.project(self.params, rows)

    def put(self, tokens: Array) -> Array:
        """The targets [B, T] with tokens [B, M] in their gaps."""
        sentences = jnp.arange(self.start.shape[0])[:, None]
        before = jnp.take_along_axis(self.start, self.cache.masked, axis=1)
        return self.start.at[sentences, self.cache.masked].set(jnp.where(self.is_gap, tokens, before))

    def framed(self, tokens: Array) -> Array:
        """[B, 1, M+2]: bos, tokens [B, M], eos behind as many as there are gaps, padding."""
        special = self.net.specials
        slot = jnp.arange(self.limit + 1)
        inner = jnp.pad(tokens, ((0, 0), (0, 1)))
        behind = jnp.where(slot == self.count[:, None], special.eos, special.pad)
        framed = jnp.where(slot < self.count[:, None], inner, behind)
        return jnp.pad(framed, ((0, 0), (1, 0)), constant_values=special.bos)[:, None].astype(jnp.int32)

    def first_draft(self) -> Array:
        """The predictions [B, 1, M+2] of the NAR rows, which are computed anyway."""
        logits = self.project(self.nar)
        banned = _banned(self.net.specials)
        return self.framed(argmax(logits + forbid(logits.shape[-1], banned, self.net.config.vocab_size)))

    def draft(self, targets: Array, settings: FillSettings) -> Array:
        """Mask-predict of the gaps that are masks in targets [B, 1, M+2]."""
        start = self.put(targets[:, 0, 1 : self.limit + 1])
        lengths = (start != self.net.specials.pad).sum(axis=1)[:, None]
        filled = fill(
            self.net, self.params, self.encoded, self.projected, lengths, start[:, None], settings, start.shape[1]
        )
        return self.framed(jnp.take_along_axis(filled.tokens[:, 0], self.cache.masked, axis=1))

    def hypotheses(self, tokens: Array, scores: Array) -> Hypotheses:
        """The targets [B, 1, T-1] with tokens [B, M] in their gaps; a score is the mean of those of the gap tokens [B, M]."""
        scores = jnp.where(self.is_gap, scores, 0.0)
        sentences = jnp.arange(self.start.shape[0])[:, None]
        placed = jnp.zeros(self.start.shape, jnp.float32).at[sentences, self.cache.masked].add(scores)
        return Hypotheses(
            tokens=self.put(tokens)[:, None, 1:],
            lengths=(self.start != self.net.specials.pad).sum(axis=1)[:, None] - 1,
            scores=(scores.sum(axis=1) / jnp.maximum(self.count, 1))[:, None],
            token_scores=placed[:, None, 1:],
        )


def _banned(specials: Specials) -> tuple[int, ...]:
    return (specials.pad, specials.bos, specials.mask, specials.eos)


@dataclass(frozen=True)
class Infilling:
    """Binds the model to (params, source [B, S], start [B, T])."""

    net: Janus
    filling: FillSettings  # of the drafts
    limit: int  # M

    def gaps(self, arrays: tuple[Params, Array, Array]) -> _Gaps:
        """The targets of the batch."""
        return _Gaps(self.net, *arrays, self.limit)

    def bound(self, gaps: _Gaps) -> Bound:
        """The model as the search calls it: a hypothesis holds the gap tokens alone."""
        drafter = WholeDrafts(
            draft_fn=lambda targets, lengths: gaps.draft(targets, self.filling),
            lengths=gaps.count[:, None] + 2,
            slots=self.limit + 2,
            specials=self.net.specials,
            realign=False,
            first=gaps.first_draft() if self.has_first_draft else None,
        )
        return Bound(
            drafter=drafter,
            verify_fn=gaps.step,
            project_fn=gaps.project,
            rewind_fn=self.net.rewind_cache,
            empty_cache=lambda: gaps.cache,
            sentences=gaps.start.shape[0],
        )

    @property
    def has_first_draft(self) -> bool:
        """Whether the NAR rows that the first pass computes are the first draft."""
        return self.filling.passes == 1

    def __call__(self, arrays: tuple[Params, Array, Array]) -> Bound:
        return self.bound(self.gaps(arrays))


@functools.partial(jax.jit, static_argnames=("binding", "acceptance"))
def _run_infill(
    arrays: tuple[Params, Array, Array],
    costs: PassCosts,
    policy: DraftPolicy,
    *,
    binding: Infilling,
    acceptance: Acceptance,
) -> tuple[Hypotheses, Statistics, DraftPolicy]:
    """As `speculative_search` returns them, but hypotheses are whole targets [B, 1, T-1]."""
    gaps, net = binding.gaps(arrays), binding.net
    bound = binding.bound(gaps)
    inner, counts, policy = speculative_search(
        bound.drafter,
        bound.verify_fn,
        bound.project_fn,
        bound.rewind_fn,
        net.reorder_cache,
        bound.empty_cache(),
        max_lengths=gaps.count,
        limit=binding.limit,
        specials=net.specials,
        constraints=Constraints(_banned(net.specials), net.config.vocab_size),
        costs=costs,
        acceptance=acceptance,
        policy=policy,
        drafted=binding.has_first_draft,
        to_eos=False,
    )
    return gaps.hypotheses(inner.tokens[:, 0], inner.token_scores[:, 0]), counts, policy


@functools.partial(jax.jit, static_argnames=("net", "limit"))
def _run_scores(params: Params, source: Array, start: Array, filling: Array, *, net: Janus, limit: int) -> Hypotheses:
    """The targets with gap tokens [B, M], and their log-probabilities, all in one pass."""
    gaps = _Gaps(net, params, source, start, limit)
    fed = jnp.pad(filling[:, :-1], ((0, 0), (1, 0)), constant_values=net.specials.bos)
    rows, _ = gaps.step(fed, gaps.cache)
    return gaps.hypotheses(filling, log_probs_of(gaps.project(rows), filling))
