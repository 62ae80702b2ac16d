"""Drafts from one pass over rows that each emit a token (CTC, DAG): continued from the tokens that were emitted.

The pass gives a distribution over whole outputs. After each round the forward recursion over the emitted tokens says which row
or vertex they most likely end in; the draft goes on greedily from there. So a draft that went wrong is corrected without a pass
of the decoder.

Legend: B sentences, R rows or vertices, W drafted tokens, L longest hypothesis.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.search.drafters import Emitted, FreeDrafts
from janus_jax.types import Array, Specials

_NONE = -jnp.inf  # the log-probability of what cannot be
_NO_TOKEN = -1  # of a row that emits a blank


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Place:
    row: Array  # [B] int32, the first row behind those that gave the emitted tokens
    merged: Array  # [B] int32, the token that this row would only repeat; _NO_TOKEN: none


@dataclass(frozen=True)
class CtcDrafts(FreeDrafts):
    """Drafts of CTC rows: the best path behind the row in which the emitted tokens most likely end.

    Attributes:
      scores_fn: tokens [B, L] -> log-probabilities [B, R, L] float32 that each row emits them.
      tokens: [B, R] int32, the likeliest token of each row.
      log_probs: [B, R] float32, of these tokens.
      blank: [B, R] float32, of the blank.
      real: [B, R] bool, rows that belong to the sentence: the first so many.
      specials: ids of the special tokens.
    """

    scores_fn: Callable[[Array], Array]
    tokens: Array
    log_probs: Array
    blank: Array
    real: Array
    specials: Specials

    def start(self) -> _Place:
        """See `Drafter`."""
        none = jnp.zeros(len(self.tokens), jnp.int32)
        return _Place(none, none + _NO_TOKEN)

    def block(self, state: _Place, emitted: Emitted, width: int) -> tuple[Array, Array]:
        """See `Drafter`. Behind the last row there is eos."""
        row, first = jnp.arange(self.tokens.shape[1]), state.row[:, None]
        labels = jnp.where(self.real & (self.log_probs > self.blank), self.tokens, _NO_TOKEN)
        before = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=_NO_TOKEN)
        before = jnp.where(row == first, state.merged[:, None], before)
        is_new = (row >= first) & (labels != _NO_TOKEN) & (labels != before)
        place = jnp.where(is_new, jnp.cumsum(is_new, axis=1) - 1, width)
        drafted = jnp.full((len(labels), width), self.specials.eos, jnp.int32)
        drafted = drafted.at[jnp.arange(len(labels))[:, None], place].set(labels, mode="drop")
        return drafted[:, None], (jnp.arange(width) <= is_new.sum(axis=1, keepdims=True))[:, None]

    def after(self, state: _Place, emitted: Emitted, rows: Array) -> _Place:
        """See `Drafter`."""
        tokens = emitted.tokens
        twice = jnp.pad(tokens[:, 1:] == tokens[:, :-1], ((0, 0), (1, 0)))  # a token like the one before it

        def forward(
            carry: tuple[Array, Array], row: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            label, blank = carry  # [B, L+1]: of the first n tokens, the last row emits the n-th, or the blank
            scores, blank_score, real = row
            grown = jnp.logaddexp(blank[:, :-1], jnp.where(twice, _NONE, label[:, :-1]))
            new_label = jnp.logaddexp(label[:, 1:], grown) + scores
            new_label = jnp.pad(new_label, ((0, 0), (1, 0)), constant_values=_NONE)
            new_blank = jnp.logaddexp(label, blank) + blank_score[:, None]
            label, blank = (jnp.where(real[:, None], x, y) for x, y in ((new_label, label), (new_blank, blank)))
            at = emitted.lengths[:, None]
            return (label, blank), tuple(jnp.take_along_axis(x, at, axis=1)[:, 0] for x in (label, blank))

        nothing = jnp.full((len(tokens), tokens.shape[1] + 1), _NONE, jnp.float32)
        over_rows = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (self.scores_fn(tokens), self.blank, self.real))
        _, (label, blank) = lax.scan(forward, (nothing, nothing.at[:, 0].set(0.0)), over_rows)
        # The rows behind take their best path.
        best = jnp.where(over_rows[2], jnp.maximum(self.log_probs, self.blank).T, 0.0)
        behind = jnp.cumsum(best[::-1], axis=0)[::-1] - best
        value = jnp.where(over_rows[2], jnp.logaddexp(label, blank) + behind, _NONE)
        row = jnp.argmax(value, axis=0)
        found = jnp.max(value, axis=0) > _NONE
        by_label = jnp.take_along_axis(label >= blank, row[None], axis=0)[0]
        last = emitted.last(self.specials)[:, 0]
        return _Place(
            # More tokens than rows: nothing is left to draft but eos.
            row=jnp.where(found, row + 1, len(over_rows[1])).astype(jnp.int32),
            merged=jnp.where(by_label, last, _NO_TOKEN).astype(jnp.int32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Spread:
    log_probs: Array  # [B, R] float32, of the vertices that the emitted tokens may end in, up to a constant
    count: Array  # [B] int32, tokens that it has seen


@dataclass(frozen=True)
class DagDrafts(FreeDrafts):
    """Drafts of a graph: the path of the best links behind the vertex in which the emitted tokens most likely end.

    Attributes:
      scores_fn: tokens [B, 1] -> log-probabilities [B, R, 1] float32 that each vertex emits them.
      links: [B, R, R] float32, log-probability of the link from axis 1 to axis 2; -inf: none.
      tokens: [B, R] int32, the likeliest token of each vertex.
      log_probs: [B, R] float32, of these tokens.
      last: [B] int32, where paths end.
      specials: ids of the special tokens.
    """

    scores_fn: Callable[[Array], Array]
    links: Array
    tokens: Array
    log_probs: Array
    last: Array
    specials: Specials

    def start(self) -> _Spread:
        """See `Drafter`."""
        first = jnp.where(jnp.arange(self.tokens.shape[1]) == 0, 0.0, _NONE)
        spread = jnp.broadcast_to(first, self.tokens.shape).astype(jnp.float32)
        return _Spread(spread, jnp.zeros(len(spread), jnp.int32))

    def block(self, state: _Spread, emitted: Emitted, width: int) -> tuple[Array, Array]:
        """See `Drafter`. Of the links the one counts that leads to the best vertex, its likeliest token included."""
        following = jnp.argmax(self.links + self.log_probs[:, None], axis=2)
        at = jnp.argmax(state.log_probs, axis=1)
        drafted, real, over = [], [], jnp.zeros(len(at), bool)
        for _ in range(width):
            at = jnp.take_along_axis(following, at[:, None], axis=1)[:, 0]
            token = jnp.take_along_axis(self.tokens, at[:, None], axis=1)[:, 0]
            real.append(~over)
            over = over | (at >= self.last)
            drafted.append(jnp.where(over, self.specials.eos, token))
        return jnp.stack(drafted, axis=1)[:, None].astype(jnp.int32), jnp.stack(real, axis=1)[:, None]

    def after(self, state: _Spread, emitted: Emitted, rows: Array) -> _Spread:
        """See `Drafter`."""

        def behind(s: _Spread) -> Array:
            return ~emitted.done & (s.count < emitted.lengths)

        def one_token(s: _Spread) -> _Spread:
            token = jnp.take_along_axis(
                emitted.tokens, jnp.minimum(s.count, emitted.tokens.shape[1] - 1)[:, None], axis=1
            )
            reached = jax.nn.logsumexp(s.log_probs[:, :, None] + self.links, axis=1)
            spread = reached + self.scores_fn(token)[:, :, 0]
            # A token that no vertex there can emit, or no vertex left: the place alone counts, or the last one.
            spread = jnp.where(_exists(spread), spread, jnp.where(_exists(reached), reached, s.log_probs))
            spread = spread - jnp.max(spread, axis=1, keepdims=True)
            moves = behind(s)
            return _Spread(jnp.where(moves[:, None], spread, s.log_probs), s.count + moves)

        return lax.while_loop(lambda s: jnp.any(behind(s)), one_token, state)


def _exists(spread: Array) -> Array:
    return jnp.max(spread, axis=1, keepdims=True) > _NONE
