"""What a search that emits a token at a time may emit, and what it has to.

Legend: B sentences, N hypotheses of a batch, V vocabulary columns (padded), L longest hypothesis, P prefix tokens.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax

from janus_jax.decode.search.vocab import forbid
from janus_jax.types import Array, Specials

FREE = -1  # instead of a forced token: the search chooses


@dataclass(frozen=True)
class Constraints:
    """What may be emitted."""

    banned: tuple[int, ...]  # ids that are never emitted
    vocab_size: int  # logit columns from here on are padding
    min_length: int = 1  # least number of tokens before eos
    no_repeat_ngram: int = 0  # no n-gram of this size occurs twice in a hypothesis; 0: off

    @staticmethod
    def default(specials: Specials, vocab_size: int, **settings: int) -> "Constraints":
        """pad, bos and mask are never emitted."""
        return Constraints((specials.pad, specials.bos, specials.mask), vocab_size, **settings)

    def bias(self, columns: int, step: Array, specials: Specials, tokens: Array | None = None) -> Array:
        """Bias to add to logits [..., V]: -inf at tokens that may not come next.

        Args:
          columns: V.
          step: [...] int32, tokens emitted so far.
          specials: ids of the special tokens.
          tokens: [N, L] emitted tokens, to watch n-grams; step is [] then.

        Returns:
          [..., V]; [N, V] where n-grams are watched.
        """
        early = (step < self.min_length)[..., None] & (jnp.arange(columns) == specials.eos)
        bias = jnp.where(early, -jnp.inf, jnp.asarray(forbid(columns, self.banned, self.vocab_size)))
        if self.no_repeat_ngram and tokens is not None:
            bias = bias + ngram_bias(tokens, step, self.no_repeat_ngram, columns)
        return bias


def forced_token(step: Array, max_lengths: Array, prefix: Array | None, specials: Specials) -> Array:
    """The token [B] that has to follow after `step` tokens: eos at the longest length, a prefix's token, or FREE.

    Args:
      step: [] int32.
      max_lengths: [B] int32.
      prefix: [B, P] int32, padded; None: none.
    """
    token = jnp.full(max_lengths.shape, FREE, jnp.int32)
    if prefix is not None and prefix.shape[1]:
        wanted = lax.dynamic_index_in_dim(prefix, jnp.minimum(step, prefix.shape[1] - 1), axis=1, keepdims=False)
        token = jnp.where((step < prefix.shape[1]) & (wanted != specials.pad), wanted, token)
    return jnp.where(step + 1 >= max_lengths, specials.eos, token)


def ngram_bias(tokens: Array, step: Array, n: int, columns: int) -> Array:
    """Bias [N, V] float32 to add to logits: -inf at every token that would complete an n-gram seen before.

    Args:
      tokens: [N, L], of which the first `step` are emitted.
      step: [] int32, tokens emitted so far.
      n: size of the n-grams, at least 1.
      columns: V.
    """
    count, length = tokens.shape
    if length < n:
        return jnp.zeros((count, columns), jnp.float32)
    ends = jnp.arange(n - 1, length)  # where an n-gram may end
    last = lax.dynamic_slice_in_dim(jnp.pad(tokens, ((0, 0), (n - 1, 0))), step, n - 1, axis=1)
    seen = jnp.broadcast_to(ends < step, (count, ends.size)) & (step >= n - 1)
    for back in range(1, n):
        seen &= tokens[:, ends - back] == last[:, n - 1 - back, None]
    bias = jnp.where(seen, -jnp.inf, 0.0)
    return jnp.zeros((count, columns), jnp.float32).at[jnp.arange(count)[:, None], tokens[:, ends]].min(bias)
