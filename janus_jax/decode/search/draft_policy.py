"""When drafting is worth its cost: the costs of decoder passes, and the policy that decides when a draft is made.

Legend: n widths to choose from, W drafted tokens verified in a round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.types import Array

# Greedy steps after a draft has failed, about a sentence; where drafts are free, searches. Doubled after each failure.
FIRST_PAUSE = 16
_LONGEST_PAUSE = 4096
_PATIENCE = 4.0  # greedy steps that searches with drafts may lose; the last ten searches or so count most


def accepted_of_width(rate: float, width: int) -> float:
    """Drafted tokens of `width` that a round accepts in the mean, if each one is accepted with the probability `rate`, provided
    that those before it are.
    """
    return sum(rate**number for number in range(1, width + 1))


def acceptance_rate(accepted: Array, width: int) -> Array:
    """Inverts `accepted_of_width`, [] float32, from a table; at most 0.95, an endless draft of 19 accepted tokens."""
    rates = np.linspace(0.0, 0.95, 951)
    return jnp.interp(accepted, np.array([accepted_of_width(rate, width) for rate in rates]), rates)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PassCosts:
    """Costs of decoder passes, all in one unit. Numbers or arrays [], so that new costs compile nothing again."""

    step: Array | float  # of a greedy step
    draft: Array | float  # of making a draft
    verify: tuple[Array | float, ...]  # of verifying each of `widths`
    widths: tuple[int, ...] = field(metadata={"static": True})  # W, ascending
    before: Array | float = 0.0  # of what a search with drafts computes once, before its first round

    @staticmethod
    def of_no_drafts(widths: Sequence[int]) -> "PassCosts":
        """Costs at which no draft is ever made."""
        return PassCosts(1.0, math.inf, (math.inf,) * len(widths), tuple(widths))

    @staticmethod
    def of_free_drafts(widths: Sequence[int]) -> "PassCosts":
        """Costs at which drafts are always made, and the widest verification is chosen: drafts are free, all other passes cost
        the same.
        """
        return PassCosts(1.0, 0.0, (1.0,) * len(widths), tuple(widths))

    @staticmethod
    def linear(step: float, widest: float, draft: float, widths: Sequence[int]) -> "PassCosts":
        """Costs of all widths from those of a greedy step and of the widest verification: linear in the tokens between.

        Args:
          step, widest, draft: seconds.
          widths: W to choose from.
        """
        ordered = tuple(sorted(set(widths)))
        slope = (widest - step) / ordered[-1]
        return PassCosts(step, draft, tuple(step + slope * width for width in ordered), ordered)

    def gains(self, accepted: Array, redraft: Array | bool) -> Array:
        """How many greedy steps a round saves for each one that it costs, [n] float32.

        Args:
          accepted: [] float32, drafted tokens that are expected to be accepted.
          redraft: [] bool, the round makes a new draft.
        """
        tokens = jnp.minimum(accepted, jnp.asarray(self.widths, jnp.float32)) + 1.0
        return tokens / self._steps(redraft)

    def best_width(self, accepted: Array, redraft: Array) -> Array:
        """The index [] int32 of the width that gains most; of equal gains the widest."""
        gains = self.gains(accepted, redraft)
        return len(self.widths) - 1 - jnp.argmax(gains[::-1])

    def in_steps(self, width: Array, redraft: Array) -> Array:
        """The cost [] of a round, in greedy steps; `width` is an index of `widths`."""
        return self._steps(redraft)[width]

    def can_pay(self) -> Array:
        """Whether a draft is worth its cost if all of it is accepted, [] bool."""
        return jnp.any(self.gains(jnp.float32(jnp.inf), True) > 1.0)

    def _steps(self, redraft: Array | bool) -> Array:
        verify = jnp.stack([jnp.asarray(cost, jnp.float32) for cost in self.verify])
        return (verify + jnp.where(redraft, self.draft, 0.0)) / self.step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DraftPolicy:
    """State of the decision when to draft. A search hands it to the next one, so that failures are not repeated.

    Between searches it stays on the host: as arrays of a device it would cause another compilation.
    """

    # [] float32, drafted tokens that a round is expected to accept; below 0: not known. Where drafts are free, those of an
    # endless draft.
    expected: Array
    # [] float32, greedy steps saved minus greedy steps spent: by the present draft; where drafts are free, by the last searches
    balance: Array
    pause: Array  # [] int32, greedy steps before the next draft; where drafts are free, searches
    next_pause: Array  # [] int32, how long the next pause is

    @staticmethod
    def initial() -> "DraftPolicy":
        """The state before any draft."""
        return DraftPolicy(np.float32(-1.0), np.float32(0.0), np.int32(0), np.int32(FIRST_PAUSE))

    def with_expected(self, costs: PassCosts) -> "DraftPolicy":
        """The state before a search: at first as many tokens are expected to be accepted as the narrowest verification takes."""
        return replace(self, expected=jnp.where(self.expected < 0, jnp.float32(costs.widths[0]), self.expected))

    def after_round(
        self, costs: PassCosts, width: Array, redraft: Array, accepted: Array, left: Array
    ) -> tuple["DraftPolicy", Array]:
        """The state after a round, and whether the next round needs a new draft.

        Args:
          costs: of the decoder passes.
          width: [] index of the width that was verified.
          redraft: [] bool, the round made a new draft.
          accepted: [] float32, drafted tokens that it accepted, the mean over the sentences.
          left: [] bool, some drafted tokens are not verified yet, or stand behind a rejected one.
        """
        acceptable = self._acceptable(costs, width, accepted)
        balance = jnp.where(redraft, 0.0, self.balance) + accepted + 1.0 - costs.in_steps(width, redraft)
        over = ~left | (costs.gains(accepted, False).max() <= 1.0)
        policy = self._after(0.5 * (self.expected + acceptable), balance, over & (balance < 0.0), over)
        return policy, over

    def after_free_search(self, costs: PassCosts, rounds: Array, accepted: Array, longest: Array) -> "DraftPolicy":
        """The state after a search whose drafter has no draft to make.

        The search took as long as its slowest sentence. If searches with drafts take longer than greedy search would, no drafts
        are made for some searches: `pause` counts them.

        Args:
          costs: of the passes, with one width.
          rounds: [] passes of the search.
          accepted: [] float32, drafted tokens accepted in a round, the mean over the sentences.
          longest: [] tokens of the longest hypothesis: as many passes would greedy search need.
        """
        known = jnp.maximum(self.expected, 0.0)
        rate, before = acceptance_rate(accepted, costs.widths[0]), known / (1.0 + known)
        mixed = jnp.where(self.expected < 0, rate, 0.7 * before + 0.3 * rate)
        expected = jnp.where(rounds > 0, mixed / (1.0 - mixed), self.expected)
        spent = costs.before / costs.step + rounds * costs.in_steps(0, False)
        balance = 0.9 * self.balance + longest - spent
        failed = balance < -_PATIENCE
        after = self._after(expected, balance, failed, balance > _PATIENCE)
        return replace(after, balance=jnp.where(failed, 0.0, balance))

    @staticmethod
    def _acceptable(costs: PassCosts, width: Array, accepted: Array) -> Array:
        """Drafted tokens that could have been accepted: where nearly all verified ones were, more might have been."""
        verified = jnp.asarray(costs.widths, jnp.float32)[width]
        return jnp.where(accepted > 0.75 * verified, 2.0 * verified, accepted)

    def _after(self, expected: Array, balance: Array, failed: Array, paid: Array) -> "DraftPolicy":
        """The next state: a pause if drafts failed, twice as long as the one before unless drafts paid in between."""
        longer = jnp.minimum(2 * self.next_pause, _LONGEST_PAUSE)
        return DraftPolicy(
            expected=expected,
            balance=balance,
            pause=jnp.where(failed, self.next_pause, 0),
            next_pause=jnp.where(failed, longer, jnp.where(paid, FIRST_PAUSE, self.next_pause)),
        )
