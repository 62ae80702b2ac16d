"""Searches over graphs whose vertices emit tokens (DA-Transformer, Huang et al. 2022, arXiv 2205.07459).

A path begins at the first vertex of a sentence and ends at its last one. Links lead from each vertex to those behind
it, and a path takes one of them after the other. Each vertex on the way emits a token; the first emits bos and the last
eos, for certain. Equal neighbours in an output are both kept.

Legend: B sentences, R vertices, k tokens offered a vertex, K prefixes a sentence (the beam), L longest hypothesis (eos
counted), C different tokens of a graph at most (R * k). Private functions see one sentence and have no B.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.types import Array, Hypotheses, Specials

_NONE = -jnp.inf  # the log-probability of what cannot be


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Graph:
    """The links of a graph, and the tokens that every vertex may emit. -inf forbids a link or a token."""

    links: Array  # [B, R, R] float32, log-probability of the link from axis 1 to axis 2, a vertex behind it
    tokens: (
        Array  # [B, R, k] int32, the k likeliest tokens of each vertex, likeliest first; of the special ones only unk
    )
    log_probs: Array  # [B, R, k] float32
    real: Array  # [B, R] bool, vertices that belong to the sentence: the first so many


@dataclass(frozen=True)
class _Sentence:
    """The graph of one sentence; a sentence of fewer than two vertices has a link from the first to itself."""

    links: Array  # [R, R]
    tokens: Array  # [R, k]
    log_probs: Array  # [R, k], 0 at both ends
    inner: Array  # [R] bool, vertices that emit one of their tokens: neither end, no padding
    last: Array  # [] int32, where paths end


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Beam:
    """State of the beam search after some number of tokens. Of one sentence, without B."""

    size: Array  # [] int32, tokens of each live prefix
    tokens: Array  # [K, L] int32, live prefixes, all different
    log_probs: Array  # [K] float32, of all paths that begin with the prefix; -inf: no such prefix
    spread: Array  # [K, R] float32, of these paths the share that is at each vertex
    done_tokens: Array  # [K, L] int32, outputs, best first
    done_lengths: Array  # [K] int32, eos counted; 0: no such output
    done_scores: Array  # [K] float32


def follow(graph: Graph, *, beta: float, length_beta: float, limit: int, specials: Specials) -> Hypotheses:
    """Follows one link after the other: to the vertex with the largest log p(link) + beta log p(its likeliest token).

    With beta 0 this is greedy search, else lookahead.

    Args:
      graph: of B sentences. A sentence of fewer than two vertices has the empty output, of probability 1.
      beta: see above.
      length_beta: a score is the log-probability of path and tokens, divided by tokens ** length_beta.
      limit: L, most tokens of a hypothesis, eos counted; longer outputs are cut.
      specials: ids of the special tokens.

    Returns:
      Hypotheses [B, 1, L]. Token scores are the log-probability of each token and of the link to it. Score -inf and
      length 0: a vertex on the way has no link.

    Raises:
      ValueError: `limit` is below 1, the length of eos.
    """
    _check(1, limit)

    def search(graph: Graph) -> Hypotheses:
        sentence = _of_one(graph)
        emitted = sentence.log_probs[:, 0]
        preferred = sentence.links + beta * emitted if beta else sentence.links

        def step(at: Array, _: None) -> tuple[Array, Array]:
            following = jnp.where(at == sentence.last, at, jnp.argmax(preferred[at]))
            return following, following

        _, path = lax.scan(step, jnp.int32(0), None, length=limit)
        length = jnp.argmax((path == sentence.last) | (jnp.arange(limit) == limit - 1)) + 1
        return _of_path(sentence, path, length, length_beta, specials)

    return jax.vmap(search)(graph)


def viterbi(graph: Graph, *, length_beta: float, limit: int, specials: Specials) -> Hypotheses:
    """The best path with its likeliest tokens, of all lengths (joint Viterbi: Shao et al. 2022, arXiv 2210.05193).

    For each number of tokens the search finds the likeliest path. Of these it takes the one with the best score.

    Args:
      graph, length_beta, limit, specials: as in `follow`, but no output is cut: only paths of at most L tokens count.

    Returns:
      Hypotheses [B, 1, L], as in `follow`. Score -inf and length 0: no path has at most L tokens.

    Raises:
      ValueError: `limit` is below 1, the length of eos.
    """
    _check(1, limit)

    def search(graph: Graph) -> Hypotheses:
        sentence = _of_one(graph)

        def forward(best: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            arriving = best[:, None] + sentence.links
            best = jnp.max(arriving, axis=0) + sentence.log_probs[:, 0]
            return best, (best[sentence.last], jnp.argmax(arriving, axis=0))

        start = jnp.where(jnp.arange(len(sentence.links)) == 0, 0.0, _NONE)
        _, (ends, backs) = lax.scan(forward, start, None, length=limit)
        sizes = jnp.arange(1, limit + 1)
        length = 1 + jnp.argmax(ends / sizes.astype(jnp.float32) ** length_beta)

        def backward(at: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            size, back = step
            return jnp.where(size > length, at, back[at]), at

        _, path = lax.scan(backward, sentence.last, (sizes, backs), reverse=True)
        return _of_path(sentence, path, length, length_beta, specials)

    return jax.vmap(search)(graph)


def beam_search(graph: Graph, *, beam: int, length_beta: float, limit: int, specials: Specials) -> Hypotheses:
    """The best outputs, each with the probability of all its paths.

    A prefix keeps the probability of every vertex at which its paths may be. So paths with equal prefixes are one
    hypothesis. After each token the K likeliest prefixes stay; what is lost is other prefixes, and tokens that a vertex
    does not offer. If nothing is lost the probabilities are exact. To be called under `jax.jit`.

    Args:
      graph: of B sentences. A sentence of fewer than two vertices has the empty output only, of probability 1.
      beam: K.
      length_beta: a score is the log-probability of the output, divided by tokens ** length_beta.
      limit: L, most tokens of a hypothesis, eos counted; longer outputs do not count.
      specials: ids of the special tokens.

    Returns:
      Hypotheses [B, K, L], best first; -inf and length 0 where there are fewer outputs than K. Token scores are all 0: a
      sum over paths has no share of each token.

    Raises:
      ValueError: an impossible setting.
    """
    _check(beam, limit)

    def search(graph: Graph) -> Hypotheses:
        sentence = _of_one(graph)
        links = jnp.exp(sentence.links)
        chances = jnp.where(sentence.inner[:, None], jnp.exp(sentence.log_probs), 0.0)
        order, kinds = _kinds(sentence.tokens)
        kind_at = jnp.zeros_like(kinds).at[order].set(kinds).reshape(sentence.tokens.shape)
        token_of = jnp.zeros_like(kinds).at[kinds].set(sentence.tokens.reshape(-1)[order])

        def after_token(s: _Beam) -> _Beam:
            arriving = jnp.einsum("kr,rs->ks", s.spread, links, precision="highest")
            # Paths that end here.
            ended = s.log_probs + jnp.log(arriving[:, sentence.last])
            scores = jnp.concatenate([s.done_scores, ended / (s.size + 1.0) ** length_beta])
            done_scores, kept = lax.top_k(scores, beam)
            closed = jnp.where(jnp.arange(limit) == s.size, specials.eos, s.tokens)
            lengths = jnp.concatenate([s.done_lengths, jnp.where(ended > _NONE, s.size + 1, 0)])
            # Paths that go on. Those that emit the same token at different vertices are one prefix.
            emitting = arriving[:, :, None] * chances
            in_order = emitting.reshape(beam, -1)[:, order]
            by_kind = jnp.zeros_like(in_order).at[:, kinds].add(in_order, indices_are_sorted=True)
            log_probs, chosen = lax.top_k((s.log_probs[:, None] + jnp.log(by_kind)).reshape(-1), beam)
            origin, kind = chosen // len(kinds), chosen % len(kinds)
            spread = jnp.where(kind_at == kind[:, None, None], emitting[origin], 0.0).sum(axis=2)
            total = spread.sum(axis=1, keepdims=True)
            return _Beam(
                size=s.size + 1,
                tokens=jnp.where(jnp.arange(limit) == s.size, token_of[kind][:, None], s.tokens[origin]),
                log_probs=log_probs,
                spread=spread / jnp.where(total > 0, total, 1.0),
                done_tokens=jnp.concatenate([s.done_tokens, closed])[kept],
                done_lengths=lengths[kept],
                done_scores=done_scores,
            )

        def goes_on(s: _Beam) -> Array:
            # No output can have more probability than its prefix, nor more tokens than L.
            best = s.log_probs.max() / float(limit) ** length_beta
            return (s.size < limit) & (best > s.done_scores.min())

        nothing = jnp.full(beam, _NONE, jnp.float32)
        no_tokens = jnp.full((beam, limit), specials.pad, jnp.int32)
        spread = jnp.zeros((beam, len(links)), jnp.float32).at[0, 0].set(1.0)
        start = _Beam(
            jnp.int32(0), no_tokens, nothing.at[0].set(0.0), spread, no_tokens, jnp.zeros(beam, jnp.int32), nothing
        )
        last = lax.while_loop(goes_on, after_token, start)
        within = jnp.arange(limit) < last.done_lengths[:, None]
        tokens = jnp.where(within, last.done_tokens, specials.pad)
        return Hypotheses(tokens, last.done_lengths, last.done_scores, jnp.zeros((beam, limit), jnp.float32))

    return jax.vmap(search)(graph)


def _check(beam: int, limit: int) -> None:
    if beam < 1 or limit < 1:
        raise ValueError(f"beam {beam} and limit {limit} must be at least 1")


def _of_one(graph: Graph) -> _Sentence:
    """The graph of a sentence, without B, prepared for a search."""
    row, last = jnp.arange(len(graph.real)), jnp.maximum(graph.real.sum() - 1, 0)
    inner = (row > 0) & (row < last)
    alone = (row == 0) & (row[:, None] == 0) & (last == 0)
    links = jnp.where(graph.real & graph.real[:, None], graph.links, _NONE)
    log_probs = jnp.where(inner[:, None], graph.log_probs, 0.0)
    return _Sentence(jnp.where(alone, 0.0, links), graph.tokens, log_probs, inner, last)


def _kinds(tokens: Array) -> tuple[Array, Array]:
    """Numbers different tokens: an order [C] of tokens [R, k] in which equal ones are neighbours, and their numbers [C]."""
    flat = tokens.reshape(-1)
    order = jnp.argsort(flat)
    is_new = jnp.diff(flat[order], prepend=flat[order[:1]]) != 0
    return order, jnp.cumsum(is_new)


def _of_path(sentence: _Sentence, path: Array, length: Array, length_beta: float, specials: Specials) -> Hypotheses:
    """The hypothesis [1, L] of a path [L] of vertices behind the first, of which `length` [] count; eos is its last."""
    place = jnp.arange(len(path))
    before = jnp.concatenate([jnp.zeros(1, path.dtype), path[:-1]])
    scores = jnp.where(place < length, sentence.links[before, path] + sentence.log_probs[path, 0], 0.0)
    total = scores.sum()
    exists = total > _NONE
    tokens = jnp.where(place == length - 1, specials.eos, sentence.tokens[path, 0])
    within = exists & (place < length)
    return Hypotheses(
        tokens=jnp.where(within, tokens, specials.pad)[None],
        lengths=jnp.where(exists, length, 0)[None].astype(jnp.int32),
        scores=(total / length.astype(jnp.float32) ** length_beta)[None],
        token_scores=jnp.where(within, scores, 0.0)[None],
    )
