"""Speculative decoding of a batch: drafts of the NAR or the CTC half that the AR half verifies, bound to the model and jitted.

Legend: B sentences of a batch, K drafts a sentence, N = B*K rows, L longest hypothesis, T target slots, k tokens fed at
once.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ConfigError, DecodeConfig
from janus_jax.decode import batches
from janus_jax.decode.ar import ar_callbacks, ar_limits, cached_tokens, constraints_of, decode_ar
from janus_jax.decode.costs import Costs, Outlook, costs_from, draft_rounds, feed_rounds, seconds_a_round
from janus_jax.decode.ctc import behind_emitted, drafts_of, hypothesis_limit, run_ctc
from janus_jax.decode.ctc import check_model as check_ctc
from janus_jax.decode.drafts import Acceptance
from janus_jax.decode.nar import fill, rules_of, run_lengths
from janus_jax.decode.request import Found, Request
from janus_jax.decode.speculative import Statistics, speculative_search
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


def decode_speculative(request: Request) -> Found:
    """Greedy search by drafts that the AR half verifies; where none will be made, greedy search itself."""
    net, params, decode = request.net, request.params, request.static
    limit, max_lengths = ar_limits(request)
    outlook = outlook_of(request)
    if request.decode.draft == "never" or (request.decode.draft == "auto" and outlook.pause >= limit):
        return _greedily(request, replace(outlook, pause=np.maximum(outlook.pause - np.int32(limit), 0)))
    by_ctc = drafts_by_ctc(net, decode, int((request.source != net.specials.pad).sum(axis=1).max()))
    longest, whole = request.max_target_length, None
    if by_ctc:
        most = hypothesis_limit(net, request.source.shape[1], longest)
        encoded, found = run_ctc(params, request.source, net=net, decode=replace(decode, beam=1), limit=most)
        slots = min(batches.bucket(int(np.max(found.lengths)) + 3, at_least=8, halves=True), longest)
        whole, lengths = drafts_of(found, slots, net.specials.bos, net.specials.eos)
    else:
        longest = min(longest, net.config.length_classes - 1)
        encoded, lengths = run_lengths(
            params, request.source, net=net, count=decode.draft_lengths, limit=longest, decode=decode
        )
        slots = min(batches.bucket(int(np.max(lengths)) + 2, at_least=8, halves=True), longest)
    widths = check_widths(slots - 1)
    shape = {"net": net, "limit": limit, "slots": slots, "decode": decode}

    costs = costs_of(
        request.decode,
        widths,
        (net, lengths.shape, encoded.states.shape, slots, limit, decode),
        lambda rounds, count: _run_steps(params, encoded, rounds, count=count, **shape),
        lambda rounds: _run_drafts(params, encoded, lengths, whole, rounds, **shape),
    )
    found, did, outlook = _run_speculative(params, encoded, lengths, whole, max_lengths, costs, outlook, **shape)
    # The CTC half drafts once, before the search.
    statistics = statistics_of(did, 0, before=1) if by_ctc else statistics_of(did, decode.draft_passes)
    return Found(found, statistics, None, outlook)


def drafts_by_ctc(net: Janus, decode: DecodeConfig, longest: int) -> bool:
    """Whether the CTC half makes the drafts; `longest`: tokens of the longest source.

    Raises:
      ConfigError: the model has none, or drafts of several lengths are wanted of it.
    """
    if decode.draft_from == "nar" or (decode.draft_from == "auto" and not net.config.ctc_ratio):
        return False
    check_ctc(net, longest, "draft_from")
    if decode.draft_lengths > 1:
        raise ConfigError(
            f"config.decode.draft_lengths: {decode.draft_lengths}, but the CTC half makes one draft; set it to 1, or "
            "draft_from to nar"
        )
    return True


def _greedily(request: Request, outlook: Outlook) -> Found:
    found = decode_ar(replace(request, decode=replace(request.decode, mode="ar", beam=1)))
    none = np.zeros(len(request.source), np.int32)
    return replace(
        found, statistics={**found.statistics, **dict.fromkeys(("rounds", "drafts", "drafted"), none)}, outlook=outlook
    )


def statistics_of(did: Statistics, draft_passes: int, before: int = 0) -> dict[str, Array]:
    """What is said of a search; `before`: passes before it began."""
    passes = before + did.drafts * draft_passes + did.rounds + did.steps
    return {"passes": passes, "rounds": did.rounds, "drafts": did.drafts, "drafted": did.drafted}


def check_widths(most: int) -> tuple[int, ...]:
    """How many drafted tokens may be verified at once: few choices, since each is compiled."""
    return tuple(sorted({width for width in ((4, 16) if most > 32 else (4,)) if width < most} | {most}))


def outlook_of(request: Request) -> Outlook:
    """What an earlier batch has left; where outputs depend on what is drafted, each batch begins afresh."""
    fresh = request.outlook is None or not acceptance_of(request.decode).lossless
    return Outlook.unknown() if fresh else request.outlook


def acceptance_of(decode: DecodeConfig) -> Acceptance:
    """Which drafted tokens are kept."""
    return Acceptance(decode.accept_top, decode.accept_gap)


_measured: dict[Any, Costs] = {}


def costs_of(
    decode: DecodeConfig,
    widths: Sequence[int],
    key: Any,
    steps: Callable[[int, int], Array],
    drafts: Callable[[int], Array],
) -> Costs:
    """What passes cost here, measured once for each shape; nothing is measured where drafts are always made.

    So it is where acceptance is relaxed, since outputs then depend on what is drafted, and must not on the clock; and where
    several processes share a search, since all of them have to take the same branches.

    Args:
      decode: when drafts are made.
      widths: to choose from, ascending.
      key: the shape.
      steps: does so many rounds of feeding so many tokens.
      drafts: makes so many drafts.
    """
    if decode.draft == "never":
        return Costs.forbidding(widths)
    if decode.draft == "always" or not acceptance_of(decode).lossless or jax.process_count() > 1:
        return Costs.none(widths)
    key = (key, jax.sharding.get_abstract_mesh())
    if key not in _measured:
        plain, widest = (seconds_a_round(lambda n, k=k: steps(n, k)) for k in (1, widths[-1] + 1))
        _measured[key] = costs_from(plain, widest, seconds_a_round(drafts), widths)
    return _measured[key]


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit", "slots", "count"))
def _run_steps(
    params: Params,
    encoded: Encoded,
    rounds: Array,
    *,
    net: Janus,
    decode: DecodeConfig,
    limit: int,
    slots: int,
    count: int,
) -> Array:
    """So many rounds of feeding `count` tokens to the AR half, for the clock."""
    del slots
    projected = net.project_source(params, encoded)
    step, empty_cache = ar_callbacks(net, params, encoded, projected, decode.draft_lengths)
    first = jnp.zeros((encoded.states.shape[0] * decode.draft_lengths, count), jnp.int32)
    return feed_rounds(step, net.rewind_cache, first, empty_cache(limit), rounds)


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit", "slots"))
def _run_drafts(
    params: Params,
    encoded: Encoded,
    lengths: Array,
    whole: Array | None,
    rounds: Array,
    *,
    net: Janus,
    decode: DecodeConfig,
    limit: int,
    slots: int,
) -> Array:
    """So many drafts, for the clock."""
    del limit
    draft = drafter(net, params, encoded, net.project_source(params, encoded), decode, slots, whole)
    first = jnp.full((*lengths.shape, slots), net.specials.mask, jnp.int32)
    return draft_rounds(lambda tokens: draft(tokens, lengths), first, rounds)


def drafter(
    net: Janus,
    params: Params,
    encoded: Encoded,
    projected: Any,
    decode: DecodeConfig,
    slots: int,
    whole: Array | None = None,
) -> Callable[[Array, Array], Array]:
    """Fills the masks of targets [B, K, T] of lengths [B, K]: with what the NAR half makes of them, or with the fitting part of
    drafts of whole targets, [B, 1, T], that are at hand."""
    if whole is not None:
        special = net.specials

        def continued(tokens: Array, lengths: Array) -> Array:
            del lengths
            emitted = jnp.maximum(jnp.argmax(tokens == special.mask, axis=-1) - 1, 0)
            return behind_emitted(whole, tokens, emitted, special.eos)

        return continued
    # An eos that the draft puts early is for AR to judge.
    rules = replace(rules_of(decode), end_at_eos=False)

    def draft(tokens: Array, lengths: Array) -> Array:
        return fill(net, params, encoded, projected, lengths, tokens, decode, decode.draft_passes, slots, rules).tokens

    return draft


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit", "slots"))
def _run_speculative(
    params: Params,
    encoded: Encoded,
    lengths: Array,
    whole: Array | None,
    max_lengths: Array,
    costs: Costs,
    outlook: Outlook,
    *,
    net: Janus,
    decode: DecodeConfig,
    limit: int,
    slots: int,
) -> tuple[Hypotheses, Statistics, Outlook]:
    """As `speculative_search` gives them."""
    projected = net.project_source(params, encoded)
    step, empty_cache = ar_callbacks(net, params, encoded, projected, lengths.shape[1])
    return speculative_search(
        drafter(net, params, encoded, projected, decode, slots, whole),
        step,
        net.rewind_cache,
        net.reorder_cache,
        empty_cache(limit),
        lengths=lengths,
        slots=slots,
        max_lengths=max_lengths,
        limit=limit,
        specials=net.specials,
        constraints=constraints_of(net, decode),
        costs=costs,
        acceptance=acceptance_of(decode),
        outlook=outlook,
        lenpen=decode.lenpen,
        cached=cached_tokens(net),
    )
