"""Random choice of the next token, for `greedy.greedy_search` and `verify.speculative_search`.

Legend: N hypotheses of a batch, V vocabulary columns (padded).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.types import Array

# Logits [N, ..., V], -inf at forbidden tokens; steps [N or 1, ...], or [] -> tokens [N, ...].
PickFn = Callable[[Array, Array], Array]


def sampler(keys: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> PickFn:
    """A function that draws tokens from the model's distribution, sharpened and cut.

    The token of a step depends on the logits, the key and the step alone. So a search that computes several steps at once
    draws the same tokens as one that computes them one after the other.

    Args:
      keys: [N] a random key for each hypothesis, so that its tokens do not depend on its batch.
      temperature: logits are divided by it.
      top_k: only the k likeliest tokens (more where they tie); 0: all.
      top_p: only the likeliest tokens that together have at least this probability (Holtzman et al. 2020); 1: all.
    """

    def pick(logits: Array, step: Array) -> Array:
        logits = logits / temperature
        if 0 < top_k < logits.shape[-1]:
            logits = jnp.where(logits < lax.top_k(logits, top_k)[0][..., -1:], -jnp.inf, logits)
        if top_p < 1.0:
            ordered = -jnp.sort(-logits, axis=-1)
            probabilities = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        steps = jnp.broadcast_to(step, logits.shape[:-1])

        def draw(key: Array, steps: Array, logits: Array) -> Array:
            flat = logits.reshape(-1, logits.shape[-1])
            step_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, steps.reshape(-1))
            return jax.vmap(jax.random.categorical)(step_keys, flat).reshape(steps.shape)

        return jax.vmap(draw)(keys, steps, logits).astype(jnp.int32)

    return pick
