"""Beam search over two callbacks and a cache.

Legend: B sentences, K hypotheses a sentence (the beam), N = B*K hypotheses of a batch, V vocabulary columns (padded), L longest
hypothesis (eos counted, bos not).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.decode.search.constraints import FREE, Constraints, forced_token
from janus_jax.decode.search.greedy import greedy_search
from janus_jax.decode.search.loop import Cache, GrowFn, StepFn, put, run_in_stages
from janus_jax.types import Array, Hypotheses, Specials

ReorderFn = Callable[[Cache, Array], Cache]  # cache, order [N] -> cache whose entry i is the old entry order[i]

Stop = Literal["best", "current", "released"]
STOPS: dict[str, str] = {
    "best": "beam hypotheses are finished and no live one can still enter them, even at the length limit",
    "current": "beam hypotheses are finished and no live one would enter them if it ended now",
    "released": "beam hypotheses are finished, whatever is live",
}

_NONE = -jnp.inf  # the score of a hypothesis that does not exist


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Beam:
    """State of the loop."""

    step: Array  # [] int32, tokens emitted so far
    last: Array  # [B, K] int32, the token to feed
    live_scores: Array  # [B, K] sum of log-probabilities, best first; -inf: no such hypothesis
    live_tokens: Array  # [B, K, L]
    live_token_scores: Array  # [B, K, L]
    done_scores: Array  # [B, K] normalised scores of finished hypotheses; -inf: none yet
    done_tokens: Array  # [B, K, L]
    done_token_scores: Array  # [B, K, L]
    done_lengths: Array  # [B, K] int32
    done: Array  # [B] bool, the sentence is finished
    used: Array  # [B] int32, steps until it was
    cache: Cache


def beam_search(
    step_fn: StepFn,
    reorder_fn: ReorderFn,
    cache: Cache,
    *,
    beam: int,
    max_lengths: Array,
    limit: int,
    specials: Specials,
    constraints: Constraints,
    lenpen: float = 1.0,
    stop: Stop = "best",
    prefix: Array | None = None,
    grow_fn: GrowFn | None = None,
    stages: Sequence[int] = (),
) -> tuple[Hypotheses, Array]:
    """Searches the likeliest continuations of bos, a batch at a time (docs/method.md); to be called under `jax.jit`.

    Each step takes the 2K best continuations of the K live hypotheses. Of the first K, those that end in eos are
    finished; the first K that do not end in eos stay live. A beam of 1 runs greedy search, which ends at the first
    eos whatever `stop` says.

    Args:
      step_fn: feeds tokens [N, 1] to the model and gives logits [N, V] of the next ones; the hypotheses of a sentence are
        adjacent.
      reorder_fn: reorders the hypotheses of a cache, each within its sentence.
      cache: what `step_fn` expects before the first token (bos), for N hypotheses.
      beam: K.
      max_lengths: [B] int32, most tokens of a hypothesis, eos counted; eos is forced there. 0: the sentence gets
        no hypothesis.
      limit: L, at least the largest of max_lengths.
      specials: ids of the special tokens.
      constraints: what may be emitted. The released code forbids pad only.
      lenpen: score = sum of log-probabilities / (tokens, eos counted) ** lenpen; not negative.
      stop: when a sentence is finished, see `STOPS`.
      prefix: [B, P] int32, tokens that every hypothesis has to begin with, padded.
      grow_fn: enlarges the cache. With it the loop runs in stages, and a short batch never pays for `limit`.
      stages: lengths below `limit` to which the cache grows, in order; `cache` has the first length.

    Returns:
      Hypotheses [B, K, L], best first; scores are -inf where there is no hypothesis. And [B] int32, the steps until each sentence
      was finished: more than the best hypothesis has tokens, where the search had to look further.

    Raises:
      ValueError: an impossible setting.
    """
    if stop not in STOPS:
        raise ValueError(f"stop: {stop!r} is not one of {', '.join(map(repr, STOPS))}")
    if beam < 1 or limit < 1 or lenpen < 0:
        raise ValueError(f"beam {beam} and limit {limit} must be at least 1, lenpen {lenpen} not negative")
    max_lengths = jnp.minimum(jnp.asarray(max_lengths, jnp.int32), limit)
    if beam == 1:
        greedy = greedy_search(
            step_fn,
            cache,
            max_lengths=max_lengths,
            limit=limit,
            specials=specials,
            constraints=constraints,
            lenpen=lenpen,
            prefix=prefix,
            grow_fn=grow_fn,
            stages=stages,
        )
        return greedy, greedy.lengths[:, 0]
    rules = _Rules(max_lengths, prefix, specials, constraints, lenpen, stop)
    state = _init_beam(cache, beam, limit, rules)

    def step(s: _Beam) -> _Beam:
        return _beam_step(s, step_fn, reorder_fn, rules)

    state = run_in_stages(
        state, lambda s, goes_on: lax.while_loop(goes_on, step, s), lambda s: s.step + 1, limit, grow_fn, stages
    )
    return _beam_result(state), state.used


@dataclass(frozen=True)
class _Rules:
    """Arguments that stay the same during a search."""

    max_lengths: Array  # [B] int32
    prefix: Array | None
    specials: Specials
    constraints: Constraints
    lenpen: float
    stop: Stop


def _init_beam(cache: Cache, beam: int, limit: int, rules: _Rules) -> _Beam:
    batch, specials = rules.max_lengths.shape[0], rules.specials
    tokens = jnp.full((batch, beam, limit), specials.pad, jnp.int32)
    zeros = jnp.zeros((batch, beam, limit), jnp.float32)
    return _Beam(
        step=jnp.int32(0),
        last=jnp.full((batch, beam), specials.bos, jnp.int32),
        # The K hypotheses are equal before the first token: only one counts.
        live_scores=jnp.full((batch, beam), _NONE, jnp.float32).at[:, 0].set(0.0),
        live_tokens=tokens,
        live_token_scores=zeros,
        done_scores=jnp.full((batch, beam), _NONE, jnp.float32),
        done_tokens=tokens,
        done_token_scores=zeros,
        done_lengths=jnp.zeros((batch, beam), jnp.int32),
        done=rules.max_lengths <= 0,
        used=jnp.zeros(batch, jnp.int32),
        cache=cache,
    )


def _beam_step(s: _Beam, step_fn: StepFn, reorder_fn: ReorderFn, rules: _Rules) -> _Beam:
    batch, beam = s.last.shape
    logits, cache = step_fn(s.last.reshape(-1, 1), s.cache)
    at_end = s.step + 1 >= rules.max_lengths
    scores, parents, ids, token_scores = _candidates(s, logits, rules)
    exists = scores > _NONE
    is_eos = exists & (ids == rules.specials.eos)
    s = _finish(s, scores, parents, token_scores, is_eos & ~s.done[:, None], rules)

    # The first K candidates that do not end. At most K of the 2K end, so there are always K.
    turn = jnp.arange(2 * beam)
    _, chosen = lax.top_k(jnp.where(is_eos, -2 * beam - turn, -turn), beam)
    parents, ids = _take(parents, chosen), _take(ids, chosen)
    live_scores = _take(scores, chosen)
    order = (jnp.arange(batch, dtype=jnp.int32)[:, None] * beam + parents).reshape(-1)

    full = jnp.all(s.done_scores > _NONE, axis=-1)
    if rules.stop != "released":
        # Sums only fall: a live hypothesis can at best have the score of its present sum over the most tokens allowed.
        tokens = (s.step + 1 if rules.stop == "current" else jnp.maximum(rules.max_lengths, 1)).astype(jnp.float32)
        full &= live_scores[:, 0] / tokens**rules.lenpen <= jnp.min(s.done_scores, axis=-1)
    return replace(
        s,
        step=s.step + 1,
        last=ids,
        live_scores=live_scores,
        live_tokens=put(_take(s.live_tokens, parents), ids, s.step),
        live_token_scores=put(_take(s.live_token_scores, parents), _take(token_scores, chosen), s.step),
        done=s.done | full | at_end | (live_scores[:, 0] == _NONE),
        used=s.used + ~s.done,
        cache=reorder_fn(cache, order),
    )


def _candidates(s: _Beam, logits: Array, rules: _Rules) -> tuple[Array, Array, Array, Array]:
    """The 2K best continuations: sums, parents, ids and the last token's log-probability, each [B, 2K], best first."""
    batch, beam = s.last.shape
    # Finding the best tokens needs no softmax over the vocabulary: only these few are normalised.
    width = min(2 * beam, logits.shape[-1])
    emitted = s.live_tokens.reshape(batch * beam, -1)
    values, ids = lax.top_k(logits + rules.constraints.bias(logits.shape[-1], s.step, rules.specials, emitted), width)
    norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    forced = jnp.repeat(forced_token(s.step, rules.max_lengths, rules.prefix, rules.specials), beam)[:, None]
    only = jnp.take_along_axis(logits, jnp.maximum(forced, 0), axis=1)
    values = jnp.where(forced == FREE, values, jnp.full(values.shape, _NONE).at[:, :1].set(only)) - norm
    ids = jnp.where(forced == FREE, ids, forced).astype(jnp.int32).reshape(batch, -1)
    totals = (s.live_scores.reshape(-1, 1) + values).reshape(batch, -1)
    scores, flat = lax.top_k(totals, 2 * beam)
    return scores, (flat // width).astype(jnp.int32), _take(ids, flat), _take(values.reshape(batch, -1), flat)


def _finish(s: _Beam, scores: Array, parents: Array, token_scores: Array, ends: Array, rules: _Rules) -> _Beam:
    """Merges the candidates among the first K that end ([B, 2K] flags) into the finished hypotheses."""
    batch, beam = s.last.shape
    length = s.step + 1
    new = jnp.where(ends, scores / length.astype(jnp.float32) ** rules.lenpen, _NONE)[:, :beam]
    every = jnp.concatenate([s.done_scores, new], axis=1)
    # Released: the first K to finish stay. Else: the K best stay.
    key = jnp.where(every > _NONE, -jnp.arange(2.0 * beam), _NONE) if rules.stop == "released" else every
    _, kept = lax.top_k(key, beam)
    is_new = (kept >= beam) & (_take(every, kept) > _NONE)
    done = jnp.broadcast_to(jnp.arange(beam, dtype=jnp.int32), (batch, beam))
    origin = _take(jnp.concatenate([done, beam + parents[:, :beam]], axis=1), kept)
    here = (jnp.arange(s.done_tokens.shape[-1]) == s.step) & is_new[..., None]
    tokens = _take(jnp.concatenate([s.done_tokens, s.live_tokens], axis=1), origin)
    before = _take(jnp.concatenate([s.done_token_scores, s.live_token_scores], axis=1), origin)
    last = _take(jnp.concatenate([jnp.zeros_like(new), token_scores[:, :beam]], axis=1), kept)
    return replace(
        s,
        done_scores=_take(every, kept),
        done_tokens=jnp.where(here, rules.specials.eos, tokens),
        done_token_scores=jnp.where(here, last[..., None], before),
        done_lengths=jnp.where(is_new, length, _take(s.done_lengths, jnp.minimum(kept, beam - 1))),
    )


def _beam_result(s: _Beam) -> Hypotheses:
    scores, order = lax.top_k(s.done_scores, s.done_scores.shape[1])
    exists = scores > _NONE
    return Hypotheses(
        tokens=_take(s.done_tokens, order),
        lengths=jnp.where(exists, _take(s.done_lengths, order), 0),
        scores=scores,
        token_scores=_take(s.done_token_scores, order),
    )


def _take(values: Array, indices: Array) -> Array:
    """values [B, X, ...] at indices [B, Y] -> [B, Y, ...]."""
    shape = indices.shape + (1,) * (values.ndim - 2)
    return jnp.take_along_axis(values, indices.reshape(shape), axis=1)
