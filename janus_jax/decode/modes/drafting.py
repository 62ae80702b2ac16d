"""What the modes that draft share: the model bound to the speculative search, measured costs of its passes, statistics.

Legend: B sentences of a batch, K drafts a sentence, N = B*K hypotheses of a batch, T slots of a draft, W drafted tokens
verified in a round.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.config import InfillDecode, SpeculativeDecode
from janus_jax.decode.search.draft_policy import DraftPolicy, PassCosts
from janus_jax.decode.search.drafts import Acceptance
from janus_jax.decode.search.verify import Statistics
from janus_jax.decode.search.vocab import argmax
from janus_jax.types import Array

_RUNS = 3
_MEASURABLE = 0.02  # seconds that the clock measures well enough

DraftSettings = SpeculativeDecode | InfillDecode


@dataclass(frozen=True)
class Bound:
    """The model bound to the arrays of a batch, as the speculative search calls it; exists only while a function compiles."""

    draft_fn: Callable[[Array, Array], Array]  # targets [B, K, T] with masks, lengths [B, K] -> the masks filled
    verify_fn: Callable[[Array, Any], tuple[Array, Any]]  # tokens [N, W], cache -> logits [N, W, V], longer cache
    rewind_fn: Callable[[Any, Array], Any]  # cache, lengths [N] -> cache
    empty_cache: Callable[[], Any]
    lengths: Array  # [B, K] of the drafts
    masks: Array  # [B, K, T] a target that is all masks


class Binding(Protocol):
    """Everything static that a mode's drafts depend on; hashable, since compiled code is kept by it."""

    def __call__(self, arrays: Any) -> Bound:
        """Binds the model to a pytree of arrays."""


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


def costs_of(settings: DraftSettings, widths: Sequence[int], binding: Binding, arrays: Any) -> PassCosts:
    """Costs of the decoder passes on this machine, measured once for each binding and shape.

    Nothing is measured if drafts are always or never made. They are also always made if acceptance is relaxed:
    outputs then depend on the drafts, and must not depend on the clock. And they are always made if several processes share a
    search, because all processes have to take the same branches.

    Args:
      settings: when drafts are made, and which tokens of them are accepted.
      widths: W to choose from, ascending.
      binding: binds the model to `arrays`.
      arrays: of a batch.
    """
    if settings.draft == "never":
        return PassCosts.of_no_drafts(widths)
    if settings.draft == "always" or not acceptance_of(settings).lossless or jax.process_count() > 1:
        return PassCosts.of_free_drafts(widths)
    shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arrays))
    key = (binding, shapes, tuple(widths), jax.sharding.get_abstract_mesh())
    if key not in _measured:
        step, widest = (
            seconds_per_round(lambda rounds, k=k: _run_steps(arrays, rounds, binding=binding, count=k))
            for k in (1, widths[-1] + 1)
        )
        draft = seconds_per_round(lambda rounds: _run_drafts(arrays, rounds, binding=binding))
        _measured[key] = PassCosts.linear(step, widest, draft, widths)
    return _measured[key]


@functools.partial(jax.jit, static_argnames=("binding", "count"))
def _run_steps(arrays: Any, rounds: Array, *, binding: Binding, count: int) -> Array:
    """Feeds `count` tokens to the verifying model so many times; to be timed."""
    bound = binding(arrays)

    def body(_: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        tokens, cache = state
        logits, longer = bound.verify_fn(tokens, cache)
        return argmax(logits), bound.rewind_fn(longer, cache.length)

    tokens = jnp.zeros((math.prod(bound.lengths.shape), count), jnp.int32)
    return lax.fori_loop(0, rounds, body, (tokens, bound.empty_cache()))[0]


@functools.partial(jax.jit, static_argnames="binding")
def _run_drafts(arrays: Any, rounds: Array, *, binding: Binding) -> Array:
    """Makes so many drafts; to be timed."""
    bound = binding(arrays)

    def body(_: Array, targets: Array) -> Array:
        # Never below 0, but the compiler does not know: each draft depends on the one before.
        return jnp.where(bound.draft_fn(targets, bound.lengths) < 0, targets + 1, targets)

    return lax.fori_loop(0, rounds, body, bound.masks)


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
