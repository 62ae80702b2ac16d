"""Greedy search: each hypothesis is extended by one token at a time.

Legend: N hypotheses of a batch, V vocabulary columns (padded), L longest hypothesis, P prefix tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.search.constraints import FREE, Constraints, forced_token
from janus_jax.decode.search.loop import Cache, GrowFn, StepFn, put, run_in_stages
from janus_jax.decode.search.sampling import PickFn
from janus_jax.decode.search.vocab import argmax, log_probs_of
from janus_jax.types import Array, Hypotheses, Specials


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
    """Emits the likeliest token at each step, or the one that `pick_fn` picks; to be called under `jax.jit`.

    Args:
      step_fn, cache, limit, specials, lenpen, grow_fn, stages: as in `beam.beam_search`.
      max_lengths: [N] int32, most tokens of a hypothesis, eos counted; eos is forced there. 0: no hypothesis.
      constraints: what may be emitted.
      prefix: [N, P] int32, tokens that a hypothesis has to begin with, padded.
      pick_fn: chooses the next tokens; by default the likeliest.

    Returns:
      Hypotheses [N, 1, L]; scores are those of the model's distribution, also of tokens that `pick_fn` picked.
    """
    count = max_lengths.shape[0]
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
            # A finished hypothesis is fed eos: any token will do, but pad has no position.
            last=jnp.where(s.done, specials.eos, token)[:, None],
            tokens=put(s.tokens, token, s.step),
            token_scores=put(s.token_scores, jnp.where(s.done, 0.0, score), s.step),
            lengths=s.lengths + ~s.done,
            done=s.done | (token == specials.eos),
            cache=cache,
        )

    state = _State(
        step=jnp.int32(0),
        last=jnp.full((count, 1), specials.bos, jnp.int32),
        tokens=jnp.full((count, limit), specials.pad, jnp.int32),
        token_scores=jnp.zeros((count, limit), jnp.float32),
        lengths=jnp.zeros(count, jnp.int32),
        done=max_lengths <= 0,
        cache=cache,
    )
    state = run_in_stages(
        state, lambda s, goes_on: lax.while_loop(goes_on, body, s), lambda s: s.step + 1, limit, grow_fn, stages
    )
    return as_hypotheses(state.tokens, state.lengths, state.token_scores, lenpen)


def as_hypotheses(tokens: Array, lengths: Array, token_scores: Array, lenpen: float) -> Hypotheses:
    """Hypotheses [N, 1, L] from arrays [N, L]; a score is sum of log-probabilities / length ** lenpen, -inf where length is 0."""
    total = jnp.sum(token_scores, axis=-1)
    scores = jnp.where(lengths > 0, total / jnp.maximum(lengths, 1).astype(jnp.float32) ** lenpen, -jnp.inf)
    return Hypotheses(tokens[:, None], lengths[:, None], scores[:, None], token_scores[:, None])
