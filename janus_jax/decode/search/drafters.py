"""Drafters: they propose the next tokens of each hypothesis, which speculative search verifies.

The search, the acceptance rule, the policy and the statistics know nothing of which drafter proposes.

Legend: B sentences, K drafts a sentence, T slots of a draft (bos and eos counted), W drafted tokens, L longest hypothesis, D model
width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from janus_jax.decode.search.drafts import REACH, realign, without_stutter
from janus_jax.types import Array, Specials


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Emitted:
    """What a search has emitted so far."""

    tokens: Array  # [B, L] int32
    lengths: Array  # [B] int32
    done: Array  # [B] bool

    def last(self, specials: Specials) -> Array:
        """The token to feed next [B, 1]; eos for finished hypotheses, since pad has no position."""
        last = jnp.take_along_axis(self.tokens, jnp.maximum(self.lengths - 1, 0)[:, None], axis=1)
        last = jnp.where(self.lengths[:, None] == 0, specials.bos, last)
        return jnp.where(self.done[:, None], specials.eos, last)


class Drafter(Protocol):
    """Proposes tokens. Its state is a pytree that the search carries."""

    count: int  # K
    # There is no draft to make: no `renew`, `ready` or `left`, and the time of `block` counts as that of verifying. Whether
    # to draft is then decided once for a whole search, which has no greedy steps.
    free: bool

    def start(self) -> Any:
        """The state before the first round."""

    def renew(self, state: Any, emitted: Emitted) -> Any:
        """The state with a new draft."""

    def ready(self, state: Any, emitted: Emitted) -> Array:
        """Whether there is still something to draft, [] bool."""

    def block(self, state: Any, emitted: Emitted, width: int) -> tuple[Array, Array]:
        """The tokens [B, K, W] int32 that may come next, and which of them count [B, K, W] bool: the first so many."""

    def after(self, state: Any, emitted: Emitted, rows: Array) -> Any:
        """The state after tokens were emitted.

        Args:
          state: before.
          emitted: with the new tokens.
          rows: [B, D], the row of the verifying model that gave the last emitted token.
        """

    def left(self, state: Any, emitted: Emitted) -> Array:
        """Whether drafted tokens are left for another round, [] bool."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Whole:
    """Whole targets: bos, emitted tokens, drafted tokens, eos."""

    tokens: Array  # [B, K, T] int32
    lengths: Array  # [B, K] int32


@dataclass(frozen=True)
class WholeDrafts:
    """Drafts of whole targets: each is made once, and rounds verify one part of it after the other.

    Attributes:
      draft_fn: fills the masks of targets [B, K, T] of lengths [B, K].
      lengths: [B, K] int32, lengths of the drafts to try, bos and eos counted, at most T.
      slots: T.
      specials: ids of the special tokens.
      realign: drafts may be aligned with the emitted tokens, and their repeats be removed. False: each drafted token
        belongs to its slot.
      first: [B, K, T] int32, the first draft, if it is made already.
    """

    draft_fn: Callable[[Array, Array], Array]
    lengths: Array
    slots: int
    specials: Specials
    realign: bool = True
    first: Array | None = None
    free = False

    @property
    def count(self) -> int:
        """K."""
        return self.lengths.shape[1]

    def start(self) -> _Whole:
        """See `Drafter`."""
        tokens = jnp.zeros((*self.lengths.shape, self.slots), jnp.int32) if self.first is None else self.first
        return _Whole(tokens, self.lengths.astype(jnp.int32))

    def renew(self, state: _Whole, emitted: Emitted) -> _Whole:
        """See `Drafter`. If drafts may be realigned, without repeats."""
        length = jnp.clip(jnp.maximum(self.lengths, emitted.lengths[:, None] + 3), 2, self.slots)
        slot = jnp.arange(self.slots)
        rest = jnp.where(slot < length[..., None] - 1, self.specials.mask, self.specials.eos)
        rest = jnp.where(slot < length[..., None], rest, self.specials.pad)
        start = jnp.where(slot <= emitted.lengths[:, None, None], self._framed(emitted), rest).astype(jnp.int32)
        draft = self.draft_fn(start, length)
        return _Whole(*without_stutter(draft, length, emitted.lengths)) if self.realign else _Whole(draft, length)

    def ready(self, state: _Whole, emitted: Emitted) -> Array:
        """See `Drafter`."""
        return jnp.any(~emitted.done & (emitted.lengths + 3 <= self.slots))

    def block(self, state: _Whole, emitted: Emitted, width: int) -> tuple[Array, Array]:
        """See `Drafter`."""
        slot = emitted.lengths[:, None, None] + 1 + jnp.arange(width)
        tokens = jnp.take_along_axis(state.tokens, jnp.clip(slot, 0, self.slots - 1), axis=2)
        return tokens, slot < state.lengths[..., None]

    def after(self, state: _Whole, emitted: Emitted, rows: Array) -> _Whole:
        """See `Drafter`."""
        reach = REACH if self.realign else 0
        return _Whole(*realign(state.tokens, state.lengths, self._framed(emitted), emitted.lengths, reach=reach))

    def left(self, state: _Whole, emitted: Emitted) -> Array:
        """See `Drafter`."""
        return jnp.any(~emitted.done[:, None] & (state.lengths > emitted.lengths[:, None] + 1))

    def _framed(self, emitted: Emitted) -> Array:
        """Bos and the emitted tokens [B, 1, T]; slots behind them are not read."""
        behind = max(self.slots - 1 - emitted.tokens.shape[1], 0)
        return jnp.pad(emitted.tokens, ((0, 0), (1, behind)), constant_values=self.specials.bos)[:, None, : self.slots]


class FreeDrafts:
    """What drafters share that propose anew in each round."""

    count = 1
    free = True


@dataclass(frozen=True)
class HeadDrafts(FreeDrafts):
    """Drafts of draft heads: each round drafts anew, from the row of the verifying model that gave the last token.

    Attributes:
      first: [B, D], what the heads read before there is such a row.
      step_fn: (rows [B, D], their tokens [B]) -> the rows [B, D] of the next head.
      choose_fn: rows [B, D] -> their likeliest tokens [B].
      specials: ids of the special tokens.
    """

    first: Array
    step_fn: Callable[[Array, Array], Array]
    choose_fn: Callable[[Array], Array]
    specials: Specials

    def start(self) -> Array:
        """See `Drafter`."""
        return self.first

    def block(self, state: Array, emitted: Emitted, width: int) -> tuple[Array, Array]:
        """See `Drafter`; the state is the row [B, D] that gave the last emitted token."""
        row, token, tokens = state, emitted.last(self.specials)[:, 0], []
        for _ in range(width):
            row = self.step_fn(row, token)
            token = self.choose_fn(row)
            tokens.append(token)
        drafted = jnp.stack(tokens, axis=1)[:, None]
        return drafted, jnp.ones_like(drafted, bool)

    def after(self, state: Array, emitted: Emitted, rows: Array) -> Array:
        """See `Drafter`."""
        return rows.astype(self.first.dtype)
