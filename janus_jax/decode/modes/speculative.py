"""Mode speculative: greedy search in fewer passes, by drafts of heads, NAR or CTC rows that the AR half verifies.

Legend: B sentences of a batch, K drafts a sentence, N = B*K hypotheses of a batch, L longest hypothesis, T target slots.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ArDecode, ConfigError
from janus_jax.decode.batching import bucket
from janus_jax.decode.modes.autoregression import ar_callbacks, ar_constraints, ar_limits, decode_ar, tokens_before_bos
from janus_jax.decode.modes.ctc_search import hypothesis_limit, run_ctc
from janus_jax.decode.modes.drafting import (
    Bound,
    acceptance_of,
    costs_of,
    policy_of,
    statistics_of,
    widths_to_verify,
)
from janus_jax.decode.modes.filling import FillSettings, fill, fill_settings, rules_of, run_lengths
from janus_jax.decode.modes.source_rows import check_source_rows
from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts
from janus_jax.decode.search.drafters import HeadDrafts, WholeDrafts
from janus_jax.decode.search.drafts import Acceptance, draft_of, realign_whole
from janus_jax.decode.search.verify import Statistics, speculative_search
from janus_jax.decode.search.vocab import argmax, forbid
from janus_jax.decode.types import DecodeRequest, DecodeResult
from janus_jax.model import Janus, padded_vocab
from janus_jax.types import Array, Encoded, Hypotheses, Params


def run(request: DecodeRequest) -> DecodeResult:
    """Greedy search by drafts that the AR half verifies; greedy search itself if no draft will be made."""
    net, params, decode, settings = request.net, request.params, request.decode, request.decode.speculative
    limit, max_lengths = ar_limits(request, decode.ar)
    policy = policy_of(request.policy, settings)
    if settings.draft == "never" or (settings.draft == "auto" and policy.pause >= limit):
        return _greedy(request, replace(policy, pause=np.maximum(policy.pause - np.int32(limit), 0)))
    origin = draft_origin(request)
    if origin == "heads":
        return _with_heads(request, policy)
    longest, whole = request.max_target_length, None
    by_ctc = origin == "ctc"
    if by_ctc:
        encoded, best = run_ctc(
            params,
            request.source,
            net=net,
            beam=1,
            tokens=1,
            blank_penalty=decode.ctc.blank_penalty,
            limit=hypothesis_limit(net, request.source.shape[1], longest),
        )
        slots = min(bucket(int(np.max(best.lengths)) + 3, at_least=8, halves=True), longest)
        whole, lengths = draft_of(best, slots, net.specials.bos, net.specials.eos)
    else:
        longest = min(longest, net.config.length_classes - 1)
        encoded, lengths = run_lengths(
            params, request.source, net=net, count=settings.draft_lengths, limit=longest, rules=rules_of(decode)
        )
        slots = min(bucket(int(np.max(lengths)) + 2, at_least=8, halves=True), longest)
    # The AR half judges an eos that the draft emits early, and tokens of a draft keep their slots.
    rules = replace(rules_of(decode), end_at_eos=False, strip_pads=False)
    filling = fill_settings(decode, settings.draft_passes, rules)
    binding = Speculation(net, filling, slots, limit)
    arrays = (params, encoded, lengths, whole)
    costs = costs_of(settings, widths_to_verify(slots - 1), binding, arrays)
    hypotheses, counts, policy = _run_speculative(
        arrays,
        max_lengths,
        costs,
        policy,
        binding=binding,
        constraints=ar_constraints(net, decode.ar, decode.rules == "released"),
        acceptance=acceptance_of(settings),
        lenpen=decode.ar.lenpen,
    )
    # The CTC half makes its one draft before the search.
    statistics = statistics_of(counts, 0, before=1) if by_ctc else statistics_of(counts, settings.draft_passes)
    return DecodeResult(hypotheses, statistics, policy=policy)


def draft_origin(request: DecodeRequest) -> str:
    """What makes the drafts: "heads", "ctc" or "nar".

    Raises:
      ConfigError: the model does not have it, or drafts of several lengths are wanted of heads or CTC.
    """
    net, settings = request.net, request.decode.speculative
    origin = settings.draft_from
    if origin == "auto":
        untrained = request.trained is not None and "ctc" not in request.trained
        by_ctc = net.config.ctc_ratio and not untrained
        origin = "heads" if net.config.draft_heads else "ctc" if by_ctc else "nar"
    if origin == "ctc":
        longest = int((request.source != net.specials.pad).sum(axis=1).max())
        check_source_rows(net, "ctc", longest, "speculative.draft_from")
    if origin == "heads" and not net.config.draft_heads:
        raise ConfigError(
            "config.decode.speculative.draft_from: heads, but the model has none (model.draft_heads 0); train them "
            "(configs/heads.py) or set it to auto"
        )
    if settings.draft_lengths > 1 and origin != "nar":
        name = "CTC half makes one draft" if origin == "ctc" else "draft heads make one draft"
        raise ConfigError(
            f"config.decode.speculative.draft_lengths: {settings.draft_lengths}, but the {name}; set it to 1, "
            "or draft_from to nar"
        )
    return origin


def _with_heads(request: DecodeRequest, policy: DraftPolicy) -> DecodeResult:
    """Drafts of the model's heads, anew in each round."""
    net, params, decode, settings = request.net, request.params, request.decode, request.decode.speculative
    limit, max_lengths = ar_limits(request, decode.ar)
    encoded = _encode(params, request.source, net=net)
    heads = net.config.draft_heads
    binding, arrays = HeadSpeculation(net, limit), (params, encoded)
    hypotheses, counts, policy = _run_speculative(
        arrays,
        max_lengths,
        costs_of(settings, sorted({max(heads // 2, 1), heads}), binding, arrays, free=True),
        policy,
        binding=binding,
        constraints=ar_constraints(net, decode.ar, decode.rules == "released"),
        acceptance=acceptance_of(settings),
        lenpen=decode.ar.lenpen,
    )
    return DecodeResult(hypotheses, statistics_of(counts, 0), policy=policy)


@functools.partial(jax.jit, static_argnames="net")
def _encode(params: Params, source: Array, *, net: Janus) -> Encoded:
    return net.encode(params, source)


def _greedy(request: DecodeRequest, policy: DraftPolicy) -> DecodeResult:
    """Greedy search without drafts, with the statistics of this mode."""
    ar = request.decode.ar
    settings = ArDecode(
        beam=1,
        lenpen=ar.lenpen,
        max_length_a=ar.max_length_a,
        max_length_b=ar.max_length_b,
        min_length=ar.min_length,
    )
    result = decode_ar(request, settings, 1)
    none = dict.fromkeys(("rounds", "drafts", "drafted"), np.zeros(len(request.source), np.int32))
    return replace(result, statistics={**result.statistics, **none}, policy=policy)


@dataclass(frozen=True)
class Speculation:
    """Binds the model to (params, encoded, lengths [B, K], whole); `whole` [B, 1, T]: drafts of whole targets, or None."""

    net: Janus
    filling: FillSettings  # of the NAR half's drafts
    slots: int  # T
    limit: int  # L

    def __call__(self, arrays: tuple[Params, Encoded, Array, Array | None]) -> Bound:
        params, encoded, lengths, whole = arrays
        projected = self.net.project_source(params, encoded)
        verify, empty_cache = ar_callbacks(self.net, params, encoded, projected, lengths.shape[1])
        draft = self._drafter(params, encoded, projected) if whole is None else self._continuer(whole)
        return Bound(
            drafter=WholeDrafts(draft, lengths, self.slots, self.net.specials),
            verify_fn=verify,
            project_fn=functools.partial(self.net.project, params),
            rewind_fn=self.net.rewind_cache,
            empty_cache=lambda: empty_cache(self.limit),
            sentences=lengths.shape[0],
        )

    def _drafter(self, params: Params, encoded: Encoded, projected: Any) -> Callable[[Array, Array], Array]:
        """Drafts by mask-predict of the NAR half."""

        def draft(targets: Array, lengths: Array) -> Array:
            return fill(self.net, params, encoded, projected, lengths, targets, self.filling, self.slots).tokens

        return draft

    def _continuer(self, whole: Array) -> Callable[[Array, Array], Array]:
        """Drafts from those of whole targets: the part that continues the emitted tokens."""
        special = self.net.specials

        def draft(targets: Array, lengths: Array) -> Array:
            emitted = jnp.maximum(jnp.argmax(targets == special.mask, axis=-1) - 1, 0)
            return realign_whole(whole, targets, emitted, special.eos)

        return draft


@dataclass(frozen=True)
class HeadSpeculation:
    """Binds the model to (params, encoded), for drafts of its heads."""

    net: Janus
    limit: int  # L

    def __call__(self, arrays: tuple[Params, Encoded]) -> Bound:
        params, encoded = arrays
        net, states = self.net, encoded.states
        verify, empty_cache = ar_callbacks(net, params, encoded, net.project_source(params, encoded), 1)
        banned = forbid(padded_vocab(net.config), (net.specials.pad, net.specials.mask), net.config.vocab_size)
        drafter = HeadDrafts(
            functools.partial(net.draft_step, params),
            lambda rows: argmax(net.project(params, rows) + banned),
            *states.shape[::2],
            states.dtype,
            net.specials,
        )
        return Bound(
            drafter=drafter,
            verify_fn=verify,
            project_fn=functools.partial(net.project, params),
            rewind_fn=net.rewind_cache,
            empty_cache=lambda: empty_cache(self.limit),
            sentences=states.shape[0],
        )


@functools.partial(jax.jit, static_argnames=("binding", "constraints", "acceptance", "lenpen"))
def _run_speculative(
    arrays: tuple,
    max_lengths: Array,
    costs: PassCosts,
    policy: DraftPolicy,
    *,
    binding: Speculation | HeadSpeculation,
    constraints: Constraints,
    acceptance: Acceptance,
    lenpen: float,
) -> tuple[Hypotheses, Statistics, DraftPolicy]:
    """As `speculative_search` returns them."""
    bound, net = binding(arrays), binding.net
    return speculative_search(
        bound.drafter,
        bound.verify_fn,
        bound.project_fn,
        bound.rewind_fn,
        net.reorder_cache,
        bound.empty_cache(),
        max_lengths=max_lengths,
        limit=binding.limit,
        specials=net.specials,
        constraints=constraints,
        costs=costs,
        acceptance=acceptance,
        policy=policy,
        lenpen=lenpen,
        cached=tokens_before_bos(net),
    )
