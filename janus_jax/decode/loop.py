"""What the searches share that emit a token at a time: constraints, forced tokens, a loop that grows its cache.

Legend: B sentences, N rows of a search, V vocabulary columns (padded), L longest hypothesis, P prefix tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from janus_jax.decode.vocab import forbid, repeats
from janus_jax.types import Array, Specials

Cache = Any
StepFn = Callable[[Array, Cache], tuple[Array, Cache]]  # tokens [N, 1], cache -> logits [N, V] of the next, cache
GrowFn = Callable[[Cache, int], Cache]  # cache, length -> the cache with room for so many tokens

FREE = -1  # in place of a forced token: the search chooses


@dataclass(frozen=True)
class Constraints:
    """What may be emitted."""

    banned: tuple[int, ...]  # ids never emitted
    vocab_size: int  # logit columns from here on are padding
    min_length: int = 1  # tokens before eos, at least
    no_repeat_ngram: int = 0  # no n-gram of this size twice in a hypothesis; 0: off

    @staticmethod
    def usual(specials: Specials, vocab_size: int, **settings: int) -> "Constraints":
        """pad, bos and mask are never emitted."""
        return Constraints((specials.pad, specials.bos, specials.mask), vocab_size, **settings)

    def bias(self, columns: int, step: Array, specials: Specials, tokens: Array | None = None) -> Array:
        """To add to logits [..., V]: -inf at what may not come next.

        Args:
          columns: V.
          step: [...] int32, tokens emitted so far.
          specials: ids of the special tokens.
          tokens: [N, L] emitted tokens, for n-grams; step is [] then.

        Returns:
          [..., V]; [N, V] where n-grams are watched.
        """
        early = (step < self.min_length)[..., None] & (jnp.arange(columns) == specials.eos)
        bias = jnp.where(early, -jnp.inf, jnp.asarray(forbid(columns, self.banned, self.vocab_size)))
        if self.no_repeat_ngram and tokens is not None:
            bias = bias + repeats(tokens, step, self.no_repeat_ngram, columns)
        return bias


def forced_token(step: Array, max_lengths: Array, prefix: Array | None, specials: Specials) -> Array:
    """The token [B] that has to come after `step` tokens: eos at the longest length, a prefix's token, or FREE.

    Args:
      step: [] int32.
      max_lengths: [B] int32.
      prefix: [B, P] int32, padded; None: none.
    """
    token = jnp.full(max_lengths.shape, FREE, jnp.int32)
    if prefix is not None and prefix.shape[1]:
        given = lax.dynamic_index_in_dim(prefix, jnp.minimum(step, prefix.shape[1] - 1), axis=1, keepdims=False)
        token = jnp.where((step < prefix.shape[1]) & (given != specials.pad), given, token)
    return jnp.where(step + 1 >= max_lengths, specials.eos, token)


def run_in_stages(
    state: Any, body: Callable[[Any], Any], limit: int, grow_fn: GrowFn | None, stages: Sequence[int]
) -> Any:
    """`body` until `state.done` holds everywhere or `state.step` is `limit`; the cache grows at each of `stages`."""
    bounds = [s for s in stages if s < limit] if grow_fn else []
    for i, bound in enumerate([*bounds, limit]):
        if i:
            state = replace(state, cache=grow_fn(state.cache, bound))
        state = lax.while_loop(lambda s, b=bound: (s.step < b) & ~jnp.all(s.done), body, state)
    return state


def put(values: Array, column: Array, step: Array) -> Array:
    """values [..., L] with column [...] at position `step`."""
    return lax.dynamic_update_index_in_dim(values, column.astype(values.dtype), step, axis=values.ndim - 1)
