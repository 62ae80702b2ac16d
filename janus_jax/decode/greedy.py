"""One hypothesis a row: greedy search, and sampling, which only picks otherwise.

Legend: N rows (each its own hypothesis), V vocabulary columns (padded), L longest hypothesis, P prefix tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.loop import FREE, Cache, Constraints, GrowFn, StepFn, forced_token, put, run_in_stages
from janus_jax.decode.vocab import argmax, log_probs_of
from janus_jax.types import Array, Hypotheses, Specials

PickFn = Callable[[Array, Array], Array]  # logits [N, V] with -inf at what may not come, step -> tokens [N]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    step: Array  # [] int32
    last: Array  # [N, 1] int32, the token to feed
    tokens: Array  # [N, L]
    token_scores: Array  # [N, L]
    lengths: Array  # [N] int32
    done: Array  # [N] bool
    cache: Cache


def greedy_search(
    step_fn: StepFn,
    cache: Cache,
    *,
    max_lengths: Array,
    limit: int,
    specials: Specials,
    constraints: Constraints,
    lenpen: float = 1.0,
    prefix: Array | None = None,
    pick_fn: PickFn | None = None,
    grow_fn: GrowFn | None = None,
    stages: Sequence[int] = (),
) -> Hypotheses:
    """A token at a time, the likeliest or the one that `pick_fn` picks; to be called under `jax.jit`.

    Args:
      step_fn, cache, limit, specials, lenpen, grow_fn, stages: as in `beam.beam_search`.
      max_lengths: [N] int32, most tokens of a row, eos counted, where eos is forced; 0: an empty row.
      constraints: what may be emitted.
      prefix: [N, P] int32, tokens that a row has to begin with, padded.
      pick_fn: chooses the next tokens; by default the likeliest.

    Returns:
      Hypotheses [N, 1, L]; scores are of the model's own distribution, whatever picked.
    """
    rows = max_lengths.shape[0]
    pick = pick_fn or (lambda logits, step: argmax(logits))

    def body(s: _State) -> _State:
        logits, cache = step_fn(s.last, s.cache)
        chosen = pick(logits + constraints.bias(logits.shape[-1], s.step, specials, s.tokens), s.step)
        forced = forced_token(s.step, max_lengths, prefix, specials)
        token = jnp.where(forced == FREE, chosen, forced)
        score = log_probs_of(logits, token)
        token = jnp.where(s.done, specials.pad, token)
        return _State(
            step=s.step + 1,
            # A finished row is fed eos: any token will do, but pad would have no position.
            last=jnp.where(s.done, specials.eos, token)[:, None],
            tokens=put(s.tokens, token, s.step),
            token_scores=put(s.token_scores, jnp.where(s.done, 0.0, score), s.step),
            lengths=s.lengths + ~s.done,
            done=s.done | (token == specials.eos),
            cache=cache,
        )

    state = _State(
        step=jnp.int32(0),
        last=jnp.full((rows, 1), specials.bos, jnp.int32),
        tokens=jnp.full((rows, limit), specials.pad, jnp.int32),
        token_scores=jnp.zeros((rows, limit), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=max_lengths <= 0,
        cache=cache,
    )
    state = run_in_stages(state, body, limit, grow_fn, stages)
    return as_hypotheses(state.tokens, state.lengths, state.token_scores, lenpen)


def as_hypotheses(tokens: Array, lengths: Array, token_scores: Array, lenpen: float) -> Hypotheses:
    """One hypothesis a row, [N, 1, L], its score sum of log-probabilities / length ** lenpen (-inf where length is 0)."""
    total = jnp.sum(token_scores, axis=-1)
    scores = jnp.where(lengths > 0, total / jnp.maximum(lengths, 1).astype(jnp.float32) ** lenpen, -jnp.inf)
    return Hypotheses(tokens[:, None], lengths[:, None], scores[:, None], token_scores[:, None])


def sampler(keys: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> PickFn:
    """Picks at random from the model's distribution, sharpened and cut.

    Args:
      keys: [N] a random key for each row, so that a row's tokens do not depend on what it is batched with.
      temperature: logits are divided by it.
      top_k: only the k likeliest tokens (more where they tie); 0: all.
      top_p: only the likeliest tokens that together have at least this probability (Holtzman et al. 2020); 1: all.
    """

    def pick(logits: Array, step: Array) -> Array:
        logits = logits / temperature
        if 0 < top_k < logits.shape[-1]:
            logits = jnp.where(logits < lax.top_k(logits, top_k)[0][:, -1:], -jnp.inf, logits)
        if top_p < 1.0:
            ordered = -jnp.sort(-logits, axis=-1)
            probabilities = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(own, logits).astype(jnp.int32)

    return pick
