"""What decoder passes cost and what drafts have brought, from which speculative search knows when drafting pays.

Legend: n widths to choose from, W drafted tokens verified in a round.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.decode.vocab import argmax
from janus_jax.types import Array

FIRST_PAUSE = 16  # greedy steps after a draft has failed, about a sentence; doubled each time
_LONGEST_PAUSE = 4096
_RUNS = 3
_ENOUGH = 0.02  # seconds that can be told apart


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Costs:
    """What decoder passes cost, in any one unit: numbers or arrays [], so that other costs compile nothing anew."""

    plain: Array | float  # a greedy step
    draft: Array | float
    verify: tuple[Array | float, ...]  # for each of `widths`
    widths: tuple[int, ...] = field(metadata={"static": True})  # W, ascending

    @staticmethod
    def forbidding(widths: Sequence[int]) -> "Costs":
        """No draft is ever worth its cost."""
        return Costs(1.0, math.inf, (math.inf,) * len(widths), tuple(widths))

    @staticmethod
    def none(widths: Sequence[int]) -> "Costs":
        """Drafts are free and every other pass costs the same: drafting always pays, and the widest check is the best."""
        return Costs(1.0, 0.0, (1.0,) * len(widths), tuple(widths))

    def gains(self, accepted: Array, redraft: Array | bool) -> Array:
        """[n] how many greedy steps a round replaces for each one that it costs, when so many drafted tokens are accepted.

        Args:
          accepted: [] float32, expected.
          redraft: [] bool, the round needs a new draft.
        """
        tokens = jnp.minimum(accepted, jnp.asarray(self.widths, jnp.float32)) + 1.0
        return tokens / self._steps(redraft)

    def best_width(self, accepted: Array, redraft: Array) -> Array:
        """[] int32, the index of the width that gains most; of equals the widest."""
        gains = self.gains(accepted, redraft)
        return len(self.widths) - 1 - jnp.argmax(gains[::-1])

    def steps(self, width: Array, redraft: Array) -> Array:
        """[] what a round costs, in greedy steps; `width` is an index of `widths`."""
        return self._steps(redraft)[width]

    def can_pay(self) -> Array:
        """[] bool, whether a draft of which everything is accepted is worth its cost."""
        return jnp.any(self.gains(jnp.float32(jnp.inf), True) > 1.0)

    def _steps(self, redraft: Array | bool) -> Array:
        verify = jnp.stack([jnp.asarray(cost, jnp.float32) for cost in self.verify])
        return (verify + jnp.where(redraft, self.draft, 0.0)) / self.plain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outlook:
    """What drafting is expected to bring; a search leaves it to the next one, so that failures are not repeated.

    Between searches it stays on the host: as arrays of a device it would be compiled for anew.
    """

    expected: Array  # [] float32, drafted tokens that a round is expected to have accepted; below 0: nothing known
    balance: Array  # [] float32, greedy steps that the present draft has saved so far, less what it cost
    pause: Array  # [] int32, greedy steps before the next draft
    next_pause: Array  # [] int32, how long the next pause is

    @staticmethod
    def unknown() -> "Outlook":
        """Before any draft."""
        return Outlook(np.float32(-1.0), np.float32(0.0), np.int32(0), np.int32(FIRST_PAUSE))

    def after_round(
        self, costs: Costs, width: Array, redraft: Array, accepted: Array, left: Array
    ) -> tuple["Outlook", Array]:
        """What a round teaches: the new outlook, and whether the next round needs a new draft.

        Args:
          costs: of passes.
          width: [] index of the width that was verified.
          redraft: [] bool, the round made a new draft.
          accepted: [] float32, drafted tokens that it had accepted, a sentence on average.
          left: [] bool, there is something of the draft that was not looked at, or that stands behind what was wrong.
        """
        looked_at = jnp.asarray(costs.widths, jnp.float32)[width]
        # Where nearly all that was looked at stands, more might have.
        seen = jnp.where(accepted > 0.75 * looked_at, 2.0 * looked_at, accepted)
        balance = jnp.where(redraft, 0.0, self.balance) + accepted + 1.0 - costs.steps(width, redraft)
        over = ~left | (costs.gains(accepted, False).max() <= 1.0)
        failed = over & (balance < 0.0)
        longer = jnp.minimum(2 * self.next_pause, _LONGEST_PAUSE)
        outlook = Outlook(
            expected=0.5 * (self.expected + seen),
            balance=balance,
            pause=jnp.where(failed, self.next_pause, 0),
            next_pause=jnp.where(failed, longer, jnp.where(over, FIRST_PAUSE, self.next_pause)),
        )
        return outlook, over


def feed_rounds(
    step_fn: Callable[[Array, Any], tuple[Array, Any]],
    rewind_fn: Callable[[Any, Array], Any],
    tokens: Array,
    cache: Any,
    rounds: Array,
) -> Array:
    """So many rounds of feeding tokens [N, k], for the clock; under `jax.jit`."""

    def body(_: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        tokens, cache = state
        logits, longer = step_fn(tokens, cache)
        return argmax(logits), rewind_fn(longer, cache.length)

    return lax.fori_loop(0, rounds, body, (tokens, cache))[0]


def draft_rounds(draft_fn: Callable[[Array], Array], targets: Array, rounds: Array) -> Array:
    """So many drafts, for the clock; under `jax.jit`."""
    # Never true, but for the compiler each draft depends on the one before.
    return lax.fori_loop(0, rounds, lambda _, x: jnp.where(draft_fn(x) < 0, x + 1, x), targets)


def seconds_a_round(call: Callable[[int], object]) -> float:
    """How long a round takes.

    Args:
      call: does so many rounds; what it does besides does not count.
    """
    rounds = min(max(int(_ENOUGH / _seconds(lambda: call(1))), 1), 16)
    return max(_seconds(lambda: call(1 + rounds)) - _seconds(lambda: call(1)), 1e-9) / rounds


def _seconds(call: Callable[[], object]) -> float:
    """The least of a few runs, since anything else that goes on only makes them longer; the first one compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def costs_from(plain: float, widest: float, draft: float, widths: Sequence[int]) -> Costs:
    """Costs of all widths from those of a greedy step and of the widest check, linear in the tokens in between.

    Args:
      plain, widest, draft: seconds.
      widths: W to choose from.
    """
    ordered = tuple(sorted(set(widths)))
    slope = (widest - plain) / ordered[-1]
    return Costs(plain, draft, tuple(plain + slope * width for width in ordered), ordered)
