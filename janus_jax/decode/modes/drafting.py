"""What the modes that draft share: the model bound to the speculative search, measured costs of its passes, statistics.

Legend: B sentences of a batch, N hypotheses of a batch (B times the drafts of a sentence), W drafted tokens verified in a round,
D model width, V vocabulary columns.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.config import InfillDecode, SpeculativeDecode
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts
from janus_jax.decode.search.drafters import Drafter, Emitted
from janus_jax.decode.search.drafts import Acceptance
from janus_jax.decode.search.loop import GrowFn
from janus_jax.decode.search.verify import Statistics
from janus_jax.decode.search.vocab import argmax
from janus_jax.types import Array, Hypotheses

_RUNS = 3
_MEASURABLE = 0.02  # seconds that the clock measures well enough
_LONG = 0.2  # seconds of which other load changes little

DraftSettings = SpeculativeDecode | InfillDecode


@dataclass(frozen=True)
class Bound:
    """The model bound to the arrays of a batch, as the speculative search calls it; exists only while a function compiles."""

    drafter: Drafter
    verify_fn: Callable[[Array, Any], tuple[Array, Any]]  # tokens [N, W], cache -> rows [N, W, D], longer cache
    project_fn: Callable[[Array], Array]  # rows [..., D] -> logits [..., V]
    rewind_fn: Callable[[Any, Array], Any]  # cache, lengths [N] or [] -> cache
    empty_cache: Callable[[], Any]  # of the first stage
    sentences: int  # B
    cached: int = 0  # tokens before bos in the empty cache
    grow_fn: GrowFn | None = None
    stages: tuple[int, ...] = ()


class Binding(Protocol):
    """Everything static that a mode's drafts depend on; hashable, since compiled code is kept by it."""

    def __call__(self, arrays: tuple) -> Bound:
        """Binds the model to its parameters and the arrays of a batch."""


def acceptance_of(settings: DraftSettings) -> Acceptance:
    """Rule by which drafted tokens are accepted."""
    return Acceptance(settings.accept_top, settings.accept_gap)


def policy_of(policy: DraftPolicy | None, settings: DraftSettings) -> DraftPolicy:
    """The policy of the batch before; the initial one if outputs depend on what is drafted, so that batches are independent."""
    return DraftPolicy.initial() if policy is None or not acceptance_of(settings).lossless else policy


def widths_to_verify(longest: int) -> tuple[int, ...]:
    """How many drafted tokens may be verified at once, ascending: few choices, since each is compiled."""
    return tuple(sorted({width for width in ((4, 16) if longest > 32 else (4,)) if width < longest} | {longest}))


def statistics_of(counts: Statistics, draft_passes: int, before: int = 0) -> dict[str, Array]:
    """Statistics of a search for the output.

    Args:
      counts: of the search.
      draft_passes: decoder passes of a draft.
      before: decoder passes before the search.
    """
    passes = before + counts.drafts * draft_passes + counts.rounds + counts.steps
    return {"passes": passes, "rounds": counts.rounds, "drafts": counts.drafts, "drafted": counts.drafted}


_measured: dict[Any, PassCosts] = {}


def costs_of(
    settings: DraftSettings,
    widths: Sequence[int],
    binding: Binding,
    shapes: tuple,
    measure: Callable[[], PassCosts | None],
) -> PassCosts:
    """Costs of the decoder passes on this machine, measured once for each binding and shape.

    Nothing is measured if drafts are always or never made. They are also always made if acceptance is relaxed:
    outputs then depend on the drafts, and must not depend on the clock. And they are always made if several processes share a
    search, because all processes have to take the same branches.

    Args:
      settings: when drafts are made, and which tokens of them are accepted.
      widths: W to choose from, ascending.
      binding: binds the model to the arrays of a batch.
      shapes: of the batch; with the binding they decide the shapes of these arrays.
      measure: gives the costs, or None if this batch is too short to tell them; the next batch of its shape is then
        measured.
    """
    if settings.draft == "never":
        return PassCosts.of_no_drafts(widths)
    if settings.draft == "always" or not acceptance_of(settings).lossless or jax.process_count() > 1:
        return PassCosts.of_free_drafts(widths)
    key = (binding, shapes, tuple(widths), jax.sharding.get_abstract_mesh())
    if key not in _measured:
        costs = measure()
        if costs is None:
            return PassCosts.of_no_drafts(widths)
        _measured[key] = costs
    return _measured[key]


def costs_of_passes(binding: Binding, arrays: tuple, widths: Sequence[int]) -> PassCosts:
    """Costs where a search chooses in every round whether to draft: those of its single passes.

    Args:
      binding: binds the model to `arrays`, and makes whole drafts.
      arrays: the parameters and the arrays of the batch.
      widths: W to choose from, ascending.
    """
    step, widest = (
        seconds_per_round(lambda rounds, width=width: _run_rounds(arrays, rounds, binding=binding, width=width))
        for width in (0, widths[-1])
    )
    draft = seconds_per_round(lambda rounds: _run_drafts(arrays, rounds, binding=binding))
    return PassCosts.linear(step, widest, draft, widths)


def costs_of_searches(
    greedy: Callable[[bool], tuple[Hypotheses, Array]],
    drafting: Callable[[bool], tuple[Hypotheses, Statistics, DraftPolicy]],
    width: int,
) -> PassCosts | None:
    """Costs where whole searches are greedy or draft in every round: those of two such searches, divided by their passes.

    So they contain what a search does besides its passes. In small models that is much.

    Args:
      greedy: decodes the batch without drafts, and gives the passes [B] too; True: the same, but as if no sentence had a
        token to decode.
      drafting: likewise, with drafts.
      width: W of each round.

    Returns:
      The costs; None if no output has more than one token, which is too short to tell them.
    """
    (alone_before, _), (drafts_before, _) = _timed_search(greedy, True), _timed_search(drafting, True)
    (alone, (_, passes)), (drafts, (_, counts, _)) = _timed_search(greedy, False), _timed_search(drafting, False)
    if int(np.max(passes)) < 2:
        return None
    step = max(alone - alone_before, 1e-9) / int(np.max(passes))
    verify = max(drafts - drafts_before, 1e-9) / int(np.max(counts.rounds))
    before = max(drafts_before - alone_before, 0.0)
    return PassCosts(step, 0.0, (verify,), (width,), before)


def _timed_search(search: Callable[[bool], tuple], empty: bool) -> tuple[float, tuple]:
    """The shortest time of a few runs, and the result; a long run is not repeated. An empty search compiles first."""
    if empty:
        jax.block_until_ready(search(True))
    shortest = math.inf
    for _ in range(_RUNS):
        start = time.perf_counter()
        result = jax.block_until_ready(search(empty))
        seconds = time.perf_counter() - start
        shortest = min(shortest, seconds)
        if seconds > _LONG:
            break
    return shortest, result


@functools.partial(jax.jit, static_argnames=("binding", "width"))
def _run_rounds(arrays: tuple, rounds: Array, *, binding: Binding, width: int) -> Array:
    """Verifies `width` drafted tokens so many times, or makes so many greedy steps if it is 0; to be timed."""
    bound = binding(arrays)
    drafter = bound.drafter
    # As after a round, so that a drafter has as many new tokens to take in.
    emitted = Emitted(
        jnp.zeros((bound.sentences, 32), jnp.int32),
        jnp.full(bound.sentences, width + 1, jnp.int32),
        jnp.zeros(bound.sentences, bool),
    )

    lengths = jnp.full(bound.sentences * drafter.count, bound.cached)
    cache = bound.rewind_fn(bound.empty_cache(), lengths)

    def body(_: Array, state: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        tokens, draft, cache = state
        if width:
            drafted = drafter.block(draft, emitted, width)[0].reshape(len(tokens), width)
            tokens = jnp.concatenate([tokens[:, :1], drafted], axis=1)
        rows, longer = bound.verify_fn(tokens, cache)
        draft = drafter.after(drafter.start(), emitted, rows[:: drafter.count, 0])
        return argmax(bound.project_fn(rows)), draft, bound.rewind_fn(longer, lengths)

    tokens = jnp.zeros((bound.sentences * drafter.count, width + 1), jnp.int32)
    return lax.fori_loop(0, rounds, body, (tokens, drafter.start(), cache))[0]


@functools.partial(jax.jit, static_argnames="binding")
def _run_drafts(arrays: tuple, rounds: Array, *, binding: Binding) -> Any:
    """Makes so many drafts; to be timed."""
    bound = binding(arrays)
    none = jnp.zeros(bound.sentences, jnp.int32)
    nothing = Emitted(none[:, None], none, none < 0)

    def body(_: Array, draft: Any) -> Any:
        # Tokens are never below 0, but the compiler does not know: each draft depends on the one before.
        first = jax.tree.leaves(draft)[0].reshape(bound.sentences, -1)[:, :1]
        emitted = replace(nothing, tokens=jnp.where(first < 0, 1, nothing.tokens))
        return bound.drafter.renew(draft, emitted)

    return lax.fori_loop(0, rounds, body, bound.drafter.start())


def seconds_per_round(call: Callable[[int], object]) -> float:
    """Seconds of one round.

    Args:
      call: runs so many rounds; its time outside the rounds is not counted.
    """
    rounds = min(max(int(_MEASURABLE / _seconds(lambda: call(1))), 1), 16)
    return max(_seconds(lambda: call(1 + rounds)) - _seconds(lambda: call(1)), 1e-9) / rounds


def _seconds(call: Callable[[], object]) -> float:
    """The shortest time of a few runs, since other load only makes them longer; a first run compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)
