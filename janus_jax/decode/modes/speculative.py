"""Mode speculative: greedy search in fewer passes, by drafts of heads, CTC, DAG or NAR rows that the AR half verifies.

Legend: B sentences of a batch, K drafts a sentence, N = B*K hypotheses of a batch, L longest hypothesis, T target slots.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ArDecode, ConfigError, SpeculativeDecode
from janus_jax.decode.batching import bucket
from janus_jax.decode.modes.autoregression import (
    ar_callbacks,
    ar_constraints,
    ar_limits,
    cache_stages,
    compiled_settings,
    decode_ar,
    grown,
    lines_of,
    sampler_of,
    tokens_before_bos,
)
from janus_jax.decode.modes.drafting import (
    Bound,
    acceptance_of,
    costs_of,
    costs_of_passes,
    costs_of_searches,
    policy_of,
    statistics_of,
    widths_to_verify,
)
from janus_jax.decode.modes.filling import (
    FillSettings,
    check_lengths,
    fill,
    fill_settings,
    longest_target,
    rules_of,
    run_lengths,
)
from janus_jax.decode.modes.source_rows import check_source_rows, offered_tokens
from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts, accepted_of_width
from janus_jax.decode.search.drafters import Drafter, HeadDrafts, WholeDrafts
from janus_jax.decode.search.drafts import Acceptance
from janus_jax.decode.search.emission_drafts import CtcDrafts, DagDrafts
from janus_jax.decode.search.verify import Statistics, speculative_search
from janus_jax.decode.search.vocab import argmax, forbid
from janus_jax.decode.types import DecodePlan, DecodeRequest, DecodeResult
from janus_jax.model import Janus, draft_vocab, padded_vocab, project
from janus_jax.model.attention import NEGATIVE
from janus_jax.types import Array, Encoded, Hypotheses, Params

# Settings of mode ar that hold here too.
AR_SETTINGS = "lenpen max_length_a max_length_b min_length sample temperature top_k top_p seed".split()


def run(request: DecodeRequest) -> DecodeResult:
    """Greedy search, or sampling, by drafts that the AR half verifies; without drafts if none will be made."""
    net, params, decode, settings = request.net, request.params, request.decode, request.decode.speculative
    limit, max_lengths = ar_limits(request, decode.ar)
    policy = policy_of(request.policy, settings)
    if settings.draft == "never":
        return _greedy(request, policy)

    def search(arrays: tuple, costs: PassCosts, empty: bool = False) -> tuple[Hypotheses, Statistics, DraftPolicy]:
        return _run_speculative(
            arrays,
            0 * max_lengths if empty else max_lengths,
            costs,
            policy,
            binding=binding,
            constraints=ar_constraints(net, decode.ar, decode.rules == "released"),
            acceptance=acceptance_of(settings),
            settings=compiled_settings(decode.ar, decode.rules == "released"),
            lines=lines_of(request),
            seed=decode.ar.seed,
            trace=request.trace,
        )

    longest_source = int((request.source != net.specials.pad).sum(axis=1).max())
    origin = draft_origin(net, settings, request.trained, longest_source)
    free = origin != "nar"
    enough = 1 if free else limit  # a pause that covers the whole search
    if settings.draft == "auto" and policy.pause >= enough:
        return _greedy(request, replace(policy, pause=policy.pause - np.int32(enough)))
    if origin == "nar":
        longest = longest_target(net, request.max_target_length)
        encoded, lengths = run_lengths(
            params, request.source, net=net, count=settings.draft_lengths, limit=longest, rules=rules_of(decode)
        )
        slots = min(bucket(int(np.max(lengths)) + 2, at_least=8, halves=True), longest)
        # The AR half judges an eos that the draft emits early, and tokens of a draft keep their slots.
        rules = replace(rules_of(decode), end_at_eos=False, strip_pads=False)
        filling = fill_settings(decode, settings.draft_passes, rules)
        binding, arrays = Speculation(net, filling, slots, limit), (params, encoded, lengths)
        widths, shapes = widths_to_verify(slots - 1), (request.source.shape, lengths.shape)
        costs = costs_of(settings, widths, binding, shapes, lambda: costs_of_passes(binding, arrays, widths))
    else:
        binding = RowSpeculation(net, origin, limit, decode.ctc.blank_penalty)

        def of_batch() -> tuple[Params, Array, Encoded]:
            return params, request.source, _encode(params, request.source, net=net)

        def measure(width: int) -> PassCosts | None:
            costs, nothing = PassCosts.of_free_drafts((width,)), np.full_like(request.source, net.specials.pad)

            def greedy(empty: bool) -> tuple[Hypotheses, Array]:
                result = _greedy(replace(request, source=nothing) if empty else request, policy)
                return result.hypotheses, result.statistics["passes"]

            return costs_of_searches(greedy, lambda empty: search(of_batch(), costs, empty), width)

        def costs_of_width(width: int) -> PassCosts:
            return costs_of(settings, (width,), binding, request.source.shape, lambda: measure(width))

        costs = costs_of_best_width(_widths(origin, net, limit), float(policy.expected), costs_of_width)
        most = costs.widths[0] + 1  # tokens of a round, if all drafted ones are accepted
        if settings.draft == "auto" and most * costs.step <= costs.verify[0]:
            return _greedy(request, policy)
        arrays = of_batch()
    hypotheses, counts, policy = search(arrays, costs)
    # CTC and DAG rows are computed once, before the search; heads need no pass.
    before, draft_passes = {"nar": (0, settings.draft_passes), "heads": (0, 0)}.get(origin, (1, 0))
    return DecodeResult(hypotheses, statistics_of(counts, draft_passes, before), counts.passes, policy)


def check(plan: DecodePlan) -> None:
    """Raises ConfigError if the model cannot make the drafts, and ValueError if they need more lengths than there are."""
    settings = plan.decode.speculative
    if settings.draft == "never":
        return
    origin = draft_origin(plan.net, settings, plan.trained, plan.longest_source)
    if plan.longest_source and origin == "nar":
        check_lengths(plan, settings.draft_lengths)


def draft_origin(
    net: Janus, settings: SpeculativeDecode, trained: tuple[str, ...] | None, longest: int
) -> Literal["heads", "ctc", "dag", "nar"]:
    """What makes the drafts.

    Args:
      net: the model.
      settings: of the mode.
      trained: modes that the model was trained for; None: all.
      longest: tokens of the longest source, bos and eos counted.

    Raises:
      ConfigError: the model does not have it, or drafts of several lengths are wanted and it makes only one.
    """
    origin = settings.draft_from
    if origin == "auto":
        able = [
            name
            for name in ("ctc", "dag")
            if getattr(net.config, f"{name}_ratio") and (trained is None or name in trained)
        ]
        origin = "heads" if net.config.draft_heads else able[0] if able else "nar"
    if origin in ("ctc", "dag"):
        check_source_rows(net, origin, longest, "speculative.draft_from", "choose another draft_from")
    if origin == "heads" and not net.config.draft_heads:
        raise ConfigError(
            "config.decode.speculative.draft_from: heads, but the model has none (model.draft_heads 0); train them "
            "(configs/heads.py) or set it to auto"
        )
    if settings.draft_lengths > 1 and origin != "nar":
        name = "draft heads make" if origin == "heads" else f"the {origin.upper()} half makes"
        raise ConfigError(
            f"config.decode.speculative.draft_lengths: {settings.draft_lengths}, but {name} one draft; set it to 1, "
            "or draft_from to nar"
        )
    return origin


def _widths(origin: str, net: Janus, limit: int) -> list[int]:
    """How many tokens may be verified at once; two choices, since each is compiled."""
    most = net.config.draft_heads if origin == "heads" else min(8, limit)
    return sorted({max(most // 2, 1), most})


def costs_of_best_width(
    widths: Sequence[int], expected: float, costs_of_width: Callable[[int], PassCosts]
) -> PassCosts:
    """The costs of the width alone that gains most if `expected` tokens of an endless draft are accepted; below 0: not known.

    A search with one width needs no branch for each width, which would copy the cache.

    Args:
      widths: W to choose from, ascending.
      expected: drafted tokens.
      costs_of_width: gives the costs of a search with this width. It may measure them, and compile for it. So a narrower
        width than the widest is tried only if it would gain more, were the cost of a pass linear in its tokens.
    """

    def gain(costs: PassCosts) -> float:
        rate = 1.0 if expected < 0 else expected / (1.0 + expected)
        return (accepted_of_width(rate, costs.widths[0]) + 1) / costs.verify[0]

    best = costs_of_width(widths[-1])
    for width in reversed(widths[:-1]):
        guess = PassCosts.linear(best.step, best.verify[0], 0.0, (width, best.widths[0]))
        if gain(replace(guess, verify=guess.verify[:1], widths=(width,))) > gain(best):
            best = max(best, costs_of_width(width), key=gain)
    return best


@functools.partial(jax.jit, static_argnames="net")
def _encode(params: Params, source: Array, *, net: Janus) -> Encoded:
    return net.encode(params, source)


def _greedy(request: DecodeRequest, policy: DraftPolicy) -> DecodeResult:
    """Greedy search without drafts, with the statistics of this mode."""
    ar = request.decode.ar
    settings = replace(ArDecode(beam=1), **{name: getattr(ar, name) for name in AR_SETTINGS})
    result = decode_ar(request, settings, 1)
    none = dict.fromkeys(("rounds", "drafts", "drafted"), np.zeros(len(request.source), np.int32))
    return replace(result, statistics={**result.statistics, **none}, policy=policy)


@dataclass(frozen=True)
class Speculation:
    """Binds the model to (params, encoded, lengths [B, K]), for drafts of whole targets by mask-predict."""

    net: Janus
    filling: FillSettings  # of the drafts
    slots: int  # T
    limit: int  # L

    def __call__(self, arrays: tuple[Params, Encoded, Array]) -> Bound:
        params, encoded, lengths = arrays
        projected = self.net.project_source(params, encoded)

        def draft(targets: Array, lengths: Array) -> Array:
            return fill(self.net, params, encoded, projected, lengths, targets, self.filling, self.slots).tokens

        drafter = WholeDrafts(draft, lengths, self.slots, self.net.specials)
        return _bound(self.net, params, encoded, projected, drafter, self.limit)


@dataclass(frozen=True)
class RowSpeculation:
    """Binds the model to (params, source [B, S], encoded), for drafts of heads, CTC or DAG rows."""

    net: Janus
    origin: str  # "heads", "ctc" or "dag"
    limit: int  # L
    blank_penalty: float

    def __call__(self, arrays: tuple[Params, Array, Encoded]) -> Bound:
        params, source, encoded = arrays
        projected = self.net.project_source(params, encoded)
        drafter = self.drafter(params, source, encoded, projected)
        return _bound(self.net, params, encoded, projected, drafter, self.limit)

    def drafter(self, params: Params, source: Array, encoded: Encoded, projected: Any) -> Drafter:
        """The drafter of a batch; for CTC and DAG with the pass that computes their rows."""
        if self.origin == "heads":
            return self._of_heads(params, encoded)
        rows, real = self.net.source_rows(params, self.origin, source, encoded, projected=projected)
        return self._of_ctc(params, rows, real) if self.origin == "ctc" else self._of_dag(params, rows, real)

    def _of_heads(self, params: Params, encoded: Encoded) -> HeadDrafts:
        net = self.net
        frequent = draft_vocab(net.config)
        banned = forbid(padded_vocab(net.config), (net.specials.pad, net.specials.mask), net.config.vocab_size)
        banned, table = banned[:frequent], params["embed_tokens"]["embedding"][:frequent]
        return HeadDrafts(
            first=net.draft_start(params, encoded.states.shape[0]),
            step_fn=functools.partial(net.draft_step, params, encoded),
            choose_fn=lambda rows: argmax(project(rows, table, net.config, net.dtype) + banned),
            specials=net.specials,
        )

    def _of_ctc(self, params: Params, rows: Array, real: Array) -> CtcDrafts:
        tokens, log_probs, blank = offered_tokens(self.net, params, rows, 1, blank=True)
        tokens, log_probs = tokens[..., 0], log_probs[..., 0]
        scores = self._scores(params, rows, tokens, log_probs)
        return CtcDrafts(scores, tokens, log_probs, blank - self.blank_penalty, real, self.net.specials)

    def _of_dag(self, params: Params, rows: Array, real: Array) -> DagDrafts:
        tokens, log_probs, _ = offered_tokens(self.net, params, rows, 1)
        tokens, log_probs = tokens[..., 0], log_probs[..., 0]
        links = self.net.dag_links(params, rows, real)
        last = jnp.maximum(real.sum(axis=1) - 1, 0)
        place = jnp.arange(real.shape[1])
        at_end = (place == 0) | (place == last[:, None])  # bos and eos, for certain
        return DagDrafts(
            self._scores(params, rows, tokens, log_probs),
            jnp.where(links > NEGATIVE / 2, links, -jnp.inf),
            tokens,
            jnp.where(at_end, 0.0, log_probs),
            last,
            self.net.specials,
        )

    def _scores(self, params: Params, rows: Array, tokens: Array, log_probs: Array) -> Callable[[Array], Array]:
        """A function: tokens [B, L] -> log-probabilities [B, R, L] that rows [B, R, D] emit them.

        Args:
          params: of the model.
          rows: the rows.
          tokens, log_probs: [B, R], a token of each row and its log-probability, which give the normaliser.
        """
        table = params["embed_tokens"]["embedding"].astype(jnp.float32)
        rows = rows.astype(jnp.float32)
        total = jnp.einsum("brd,brd->br", rows, table[tokens]) - log_probs

        def scores(wanted: Array) -> Array:
            return jnp.einsum("brd,bld->brl", rows, table[wanted]) - total[..., None]

        return scores


def _bound(net: Janus, params: Params, encoded: Encoded, projected: Any, drafter: Drafter, limit: int) -> Bound:
    """The model and a drafter, as the search calls them."""
    verify, empty_cache = ar_callbacks(net, params, encoded, projected, drafter.count, reordered=True)
    # A round of whole drafts may need the full length at once.
    stages = cache_stages(encoded.mask, limit) if drafter.free else ()
    sentences = encoded.states.shape[0]

    def cache_of(length: int) -> Any:
        """An empty cache whose hypotheses may become differently long."""
        lengths = jnp.full(sentences * drafter.count, tokens_before_bos(net))
        return net.rewind_cache(empty_cache(length), lengths)

    return Bound(
        drafter=drafter,
        verify_fn=verify,
        project_fn=functools.partial(net.project, params),
        rewind_fn=net.rewind_cache,
        empty_cache=lambda: cache_of(stages[0] if stages else limit),
        sentences=sentences,
        cached=tokens_before_bos(net),
        grow_fn=functools.partial(grown, cache_of),
        stages=stages,
    )


@functools.partial(jax.jit, static_argnames=("binding", "constraints", "acceptance", "settings", "trace"))
def _run_speculative(
    arrays: tuple,
    max_lengths: Array,
    costs: PassCosts,
    policy: DraftPolicy,
    lines: Array,
    seed: Array,
    *,
    binding: Speculation | RowSpeculation,
    constraints: Constraints,
    acceptance: Acceptance,
    settings: ArDecode,
    trace: bool,
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
        pick_fn=sampler_of(settings, seed, lines, 1) if settings.sample else None,
        policy=policy,
        lenpen=settings.lenpen,
        cached=bound.cached,
        grow_fn=bound.grow_fn,
        stages=bound.stages,
        trace=trace,
    )
