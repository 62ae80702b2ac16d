"""Filling the gaps of a target by AUX rows: p(gap tokens | source, all that is visible), left to right, in few passes.

AUX rows see everything visible and the true gap tokens before their own, so that they are an autoregressive model of the gaps
(METHOD section 2). The NAR rows of the same gaps are a draft of all of them at once; a round verifies it in one pass.

Legend: B sentences of a batch, T target slots, M gaps at most, V vocabulary columns.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import DecodeConfig
from janus_jax.decode.candidates import MaskPredictRules
from janus_jax.decode.costs import Costs, Outlook, draft_rounds, feed_rounds
from janus_jax.decode.loop import Constraints
from janus_jax.decode.nar import fill
from janus_jax.decode.request import Found, Request
from janus_jax.decode.speculation import acceptance_of, check_widths, costs_of, outlook_of, statistics_of
from janus_jax.decode.speculative import speculative_search
from janus_jax.decode.vocab import argmax, forbid, log_probs_of
from janus_jax.model import Janus
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Array, Hypotheses, Params, Specials


def decode_infill(request: Request) -> Found:
    """The likeliest token of each gap in turn, by AUX; or, where the gaps' tokens are given, what AUX makes of them."""
    net, params, decode = request.net, request.params, request.static
    start = jnp.asarray(request.start)
    # One of two sizes, so that little is compiled.
    slots = start.shape[1]
    most = slots // 2 if (request.start == net.specials.mask).sum(axis=1).max(initial=0) <= slots // 2 else slots
    if request.filling is not None:
        filling = np.zeros((len(start), most), np.int32)
        filling[:, : request.filling.shape[1]] = request.filling[:, :most]
        return Found(run_scores(params, request.source, start, filling, net=net, most=most), {"passes": _one(start)})
    widths = check_widths(most)
    shape = {"net": net, "decode": decode, "most": most}

    costs = costs_of(
        request.decode,
        widths,
        ("infill", net, request.source.shape, start.shape, most, decode),
        lambda rounds, count: _run_steps(params, request.source, start, rounds, count=count, **shape),
        lambda rounds: _run_drafts(params, request.source, start, rounds, **shape),
    )
    return Found(*_run_infill(params, request.source, start, costs, outlook_of(request), **shape))


def _one(start: Array) -> Array:
    return jnp.ones(start.shape[0], jnp.int32)


class _Gaps:
    """A batch of targets with gaps, and the model bound to it."""

    def __init__(self, net: Janus, params: Params, source: Array, start: Array, most: int):
        self.net, self.params, self.start, self.most = net, params, constrain(start, BATCH), most
        self.encoded = net.encode(params, source)
        self.projected = net.project_source(params, self.encoded)
        self.nar, self.cache = net.init_gaps(params, self.encoded, self.start, most, self.projected)
        self.count = self.cache.masked_count
        self.is_gap = jnp.arange(most) < self.count[:, None]

    def step(self, tokens: Array, cache: object) -> tuple[Array, object]:
        """Logits [B, k, V] of what follows each of tokens [B, k] in the gaps."""
        hidden, cache = self.net.aux_step(self.params, tokens, cache)
        return self.net.project(self.params, hidden), cache

    def put(self, tokens: Array) -> Array:
        """[B, T] the targets with tokens [B, M] in their gaps."""
        rows = jnp.arange(self.start.shape[0])[:, None]
        there = jnp.take_along_axis(self.start, self.cache.masked, axis=1)
        return self.start.at[rows, self.cache.masked].set(jnp.where(self.is_gap, tokens, there))

    def framed(self, tokens: Array) -> Array:
        """[B, 1, M+2] bos, tokens [B, M], eos behind as many as there are gaps, padding."""
        special = self.net.specials
        slot = jnp.arange(self.most + 1)
        inner = jnp.pad(tokens, ((0, 0), (0, 1)))
        behind = jnp.where(slot == self.count[:, None], special.eos, special.pad)
        framed = jnp.where(slot < self.count[:, None], inner, behind)
        return jnp.pad(framed, ((0, 0), (1, 0)), constant_values=special.bos)[:, None].astype(jnp.int32)

    def first_draft(self) -> Array:
        """What the NAR rows say, which are computed anyway."""
        logits = self.net.project(self.params, self.nar)
        banned = _banned(self.net.specials)
        return self.framed(argmax(logits + forbid(logits.shape[-1], banned, self.net.config.vocab_size)))

    def draft(self, targets: Array, decode: DecodeConfig) -> Array:
        """Mask-predict of the gaps that are masks in targets [B, 1, M+2]."""
        start = self.put(targets[:, 0, 1 : self.most + 1])
        lengths = (start != self.net.specials.pad).sum(axis=1)[:, None]
        filled = fill(
            self.net, self.params, self.encoded, self.projected, lengths, start[:, None], decode, decode.draft_passes,
            start.shape[1], MaskPredictRules.GAPS,
        )  # fmt: skip
        return self.framed(jnp.take_along_axis(filled.tokens[:, 0], self.cache.masked, axis=1))

    def hypotheses(self, tokens: Array, scores: Array) -> Hypotheses:
        """The targets [B, 1, T-1] with these tokens [B, M] in their gaps; the mean log-probability [B, M] of a gap's token."""
        scores = jnp.where(self.is_gap, scores, 0.0)
        rows = jnp.arange(self.start.shape[0])[:, None]
        placed = jnp.zeros(self.start.shape, jnp.float32).at[rows, self.cache.masked].add(scores)
        return Hypotheses(
            tokens=self.put(tokens)[:, None, 1:],
            lengths=(self.start != self.net.specials.pad).sum(axis=1)[:, None] - 1,
            scores=(scores.sum(axis=1) / jnp.maximum(self.count, 1))[:, None],
            token_scores=placed[:, None, 1:],
        )


def _banned(specials: Specials) -> tuple[int, ...]:
    return (specials.pad, specials.bos, specials.mask, specials.eos)


@functools.partial(jax.jit, static_argnames=("net", "decode", "most"))
def _run_infill(
    params: Params,
    source: Array,
    start: Array,
    costs: Costs,
    outlook: Outlook,
    *,
    net: Janus,
    decode: DecodeConfig,
    most: int,
) -> tuple[Hypotheses, dict[str, Array], None, Outlook]:
    """As `Found` has them."""
    gaps = _Gaps(net, params, source, start, most)
    found, did, outlook = speculative_search(
        lambda targets, _lengths: gaps.draft(targets, decode),
        gaps.step,
        net.rewind_cache,
        net.reorder_cache,
        gaps.cache,
        lengths=gaps.count[:, None] + 2,
        slots=most + 2,
        max_lengths=gaps.count,
        limit=most,
        specials=net.specials,
        constraints=Constraints(_banned(net.specials), net.config.vocab_size),
        costs=costs,
        acceptance=acceptance_of(decode),
        outlook=outlook,
        draft=gaps.first_draft() if decode.draft_passes == 1 else None,
        realign=False,
        to_eos=False,
    )
    filled = gaps.hypotheses(found.tokens[:, 0], found.token_scores[:, 0])
    return filled, statistics_of(did, decode.draft_passes, before=1), None, outlook


@functools.partial(jax.jit, static_argnames=("net", "most"))
def run_scores(params: Params, source: Array, start: Array, filling: Array, *, net: Janus, most: int) -> Hypotheses:
    """Log-probabilities of given gap tokens [B, M], all in one pass."""
    gaps = _Gaps(net, params, source, start, most)
    fed = jnp.pad(filling[:, :-1], ((0, 0), (1, 0)), constant_values=net.specials.bos)
    logits, _ = gaps.step(fed, gaps.cache)
    return gaps.hypotheses(filling, log_probs_of(logits, filling))


@functools.partial(jax.jit, static_argnames=("net", "decode", "most", "count"))
def _run_steps(
    params: Params,
    source: Array,
    start: Array,
    rounds: Array,
    *,
    net: Janus,
    decode: DecodeConfig,
    most: int,
    count: int,
) -> Array:
    """So many rounds of feeding `count` tokens to the AUX rows, for the clock."""
    del decode
    gaps = _Gaps(net, params, source, start, most)
    return feed_rounds(gaps.step, net.rewind_cache, jnp.zeros((start.shape[0], count), jnp.int32), gaps.cache, rounds)


@functools.partial(jax.jit, static_argnames=("net", "decode", "most"))
def _run_drafts(
    params: Params, source: Array, start: Array, rounds: Array, *, net: Janus, decode: DecodeConfig, most: int
) -> Array:
    """So many drafts, for the clock."""
    gaps = _Gaps(net, params, source, start, most)
    masks = gaps.framed(jnp.full((start.shape[0], most), net.specials.mask, jnp.int32))
    return draft_rounds(lambda targets: gaps.draft(targets, decode), masks, rounds)
