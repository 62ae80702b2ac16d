"""The loss of DAG rows (docs/method.md, section 11): emissions, the likelihood of a target over all paths through the
graph, its likeliest path, glancing, and numbers that show whether the graph is used.

The vertices of a graph are rows; links lead from each vertex to those behind it. A path begins at the first vertex and
ends at the last; each of its vertices gives one token of the target, bos and eos included. (DA-Transformer, Huang et
al. 2022, arXiv 2205.07459.)

Legend: B sentences, T target length (bos and eos counted), R vertices, U AR slots, D model width, V' padded vocabulary.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig, ObjectiveConfig
from janus_jax.model import Janus
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.families import ar
from janus_jax.model.families.dag import real_rows, row_counts
from janus_jax.objective.aligned import Partners
from janus_jax.objective.logits import likeliest, log_normalisers, token_scores
from janus_jax.objective.sentence import SentenceTerms, drawn
from janus_jax.objective.terms import divisor_of, term
from janus_jax.types import Batch, Params

DEAD = 0.01  # a vertex is dead if so few of the paths visit it
# A sum of probabilities, relative to the largest of them, counts as 0 below this. So its inverse, which the gradient
# needs, cannot overflow.
_SMALLEST = 1e-30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """The targets of the graphs of a batch."""

    tokens: jax.Array  # [B, T] int32, bos ... eos, padding
    real: jax.Array  # [B, T] bool, False at padding
    rows: jax.Array  # [B, R] bool, True at the real vertices of a sentence
    fits: jax.Array  # [B] bool, True if there is a target and a vertex for each of its tokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Graph:
    """Log-probabilities of a graph, float32. NEGATIVE stands for -inf: sums with it stay finite, and so do gradients."""

    links: jax.Array  # [B, R, R], from axis 1 to axis 2
    emissions: jax.Array  # [B, T, R], of each target token at each vertex, normalised over the vocabulary


def labels_of(source: jax.Array, target: jax.Array, config: ModelConfig, pad: int) -> Labels:
    """The tokens of targets [..., T], and whether they fit the graphs of sources [..., S].

    A path may skip vertices and visits none twice. So a target fits if it has no more tokens than the graph vertices.
    """
    real_source, real = source != pad, target != pad
    length = real.sum(axis=-1)
    fits = (length > 1) & (length <= row_counts(real_source, config))
    return Labels(target, real, real_rows(real_source, config), fits)


def graph_of(net: Janus, objective: ObjectiveConfig, params: Params, hidden: jax.Array, labels: Labels) -> Graph:
    """The graph whose vertices are the DAG rows `hidden` [B, R, D]."""
    table = params["embed_tokens"]["embedding"]
    scores = token_scores(hidden, table, labels.tokens, net.dtype)
    total = log_normalisers(hidden, table, net.config, objective.projection_rows, net.dtype)
    emissions = scores - total[:, :, None]
    # The backward pass computes the links again: those of each head, [B, H, R, R], are not kept.
    links = jax.checkpoint(net.dag_links)(params, hidden, labels.rows)
    return Graph(links, jnp.swapaxes(emissions, 1, 2))


def negative_log_likelihood(graph: Graph, labels: Labels) -> tuple[jax.Array, jax.Array]:
    """-log p(target | source) [B], summed over all paths, and flags [B]: True where the target has a path, else it is 0.

    a_i(j), the log-probability that the first i + 1 tokens end at vertex j, is log sum_k exp(a_{i-1}(k) + E_kj) + M_ij.
    With the largest link m_k of each vertex, the sum is a product of exp(a_{i-1}(k) + m_k), shifted by the largest of
    them, and exp(E_kj - m_k), which is the same in each step. A target has no path if it does not fit, or if the links
    are so uneven that nothing remains of any path in float32.
    """
    row = jnp.arange(graph.links.shape[1])
    # Links that skip more vertices than a path can are left out, so that those of use do not vanish beside them.
    useful = (graph.links > NEGATIVE / 2) & (row - row[:, None] <= _skipped(labels)[:, None, None] + 1)
    largest = jax.lax.stop_gradient(jnp.where(useful, graph.links, NEGATIVE).max(axis=-1))
    jumps = jnp.where(useful, jnp.exp(jnp.where(useful, graph.links - largest[:, :, None], 0.0)), 0.0)

    def forward(before: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        emitted, reachable, is_real = token
        leaving = before + largest
        top = jax.lax.stop_gradient(leaving.max(axis=1, keepdims=True))
        arriving = jnp.einsum(
            "bk,bkj->bj", jnp.exp(leaving - top), jumps, precision="highest", preferred_element_type=jnp.float32
        )
        possible = reachable & (arriving > _SMALLEST)
        now = jnp.where(possible, jnp.log(jnp.where(possible, arriving, 1.0)) + top + emitted, NEGATIVE)
        return jnp.where(is_real[:, None], now, before), None

    last, _ = jax.lax.scan(forward, _start(graph), _along_tokens(graph, labels))
    value = jnp.take_along_axis(last, _last_row(labels)[:, None], axis=1)[:, 0]
    has_path = labels.fits & (value > NEGATIVE / 2)
    return jnp.where(has_path, -value, 0.0), has_path


def best_path(graph: Graph, labels: Labels) -> jax.Array:
    """The likeliest path (Viterbi): the index [B, T] int32 of the vertex that gives each target token.

    Indices of padding, and of targets that do not fit, have no meaning.
    """
    count = graph.links.shape[1]

    def forward(before: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        emitted, reachable, is_real = token
        arriving = before[:, :, None] + graph.links
        now = jnp.where(reachable, arriving.max(axis=1) + emitted, NEGATIVE)
        back = jnp.where(is_real[:, None], jnp.argmax(arriving, axis=1), jnp.arange(count))
        return jnp.where(is_real[:, None], now, before), back

    def backward(row: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.take_along_axis(back, row[:, None], axis=1)[:, 0], row

    _, backs = jax.lax.scan(forward, _start(graph), _along_tokens(graph, labels))
    first, rest = jax.lax.scan(backward, _last_row(labels), backs, reverse=True)
    return jnp.concatenate([first[None], rest]).T.astype(jnp.int32)


def _start(graph: Graph) -> jax.Array:
    """a_0 [B, R]: all paths begin at the first vertex."""
    return jnp.where(jnp.arange(graph.links.shape[1]) == 0, graph.emissions[:, 0], NEGATIVE)


def _along_tokens(graph: Graph, labels: Labels) -> tuple[jax.Array, ...]:
    """What a scan over the tokens y_1, y_2, ... reads: emissions and reachable vertices [T-1, B, R], flags [T-1, B].

    Token i is at vertex i or behind, and leaves enough vertices for the tokens that follow. Without the second rule,
    paths that cannot end in time might have so much probability that the others vanish beside them.
    """
    token, row = jnp.arange(labels.tokens.shape[1])[:, None], jnp.arange(labels.rows.shape[1])
    reachable = (token <= row) & (row <= token + _skipped(labels)[:, None, None]) & labels.rows[:, None]
    along = (graph.emissions, reachable, labels.real)
    return tuple(jnp.moveaxis(x, 1, 0)[1:] for x in along)


def _skipped(labels: Labels) -> jax.Array:
    """The number [B] of vertices that every path skips."""
    return labels.rows.sum(axis=1) - labels.real.sum(axis=1)


def _last_row(labels: Labels) -> jax.Array:
    """The index [B] of the last real vertex, where all paths end."""
    return jnp.maximum(labels.rows.sum(axis=1) - 1, 0)


def usage(links: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
    """How paths that follow the links use a graph. The likelihood does not show when they all are the same path.

    Args:
      links: [B, R, R] log-probabilities of links.
      rows: [B, R] bool, True at real vertices.

    Returns:
      For each sentence [B]: `dag/visits`, the mean over its vertices of the probability that a path visits them;
      `dag/dead`, the share of vertices that fewer than DEAD of the paths visit; `dag/entropy`, the entropy in nats of
      the link that a path takes, averaged over the visits.
    """
    chances = jnp.where(links > NEGATIVE / 2, jnp.exp(links), 0.0)
    row = jnp.arange(links.shape[1])

    def visit(visits: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, into = column
        return jnp.where(row == index, (visits * into).sum(axis=1, keepdims=True), visits), None

    start = jnp.broadcast_to((row == 0).astype(jnp.float32), rows.shape)
    visits, _ = jax.lax.scan(visit, start, (row[1:], jnp.moveaxis(chances, 2, 0)[1:]), unroll=8)
    visits = jnp.where(rows, visits, 0.0)
    entropy = -jnp.where(chances > 0, chances * links, 0.0).sum(axis=2)
    count, steps = jnp.maximum(rows.sum(axis=1), 1), jnp.maximum(visits.sum(axis=1) - 1.0, 1.0)
    return {
        "dag/visits": visits.sum(axis=1) / count,
        "dag/dead": (rows & (visits < DEAD)).sum(axis=1) / count,
        "dag/entropy": (visits * entropy).sum(axis=1) / steps,
    }


def in_model(config: ModelConfig) -> bool:
    """Whether a model has DAG rows."""
    return config.dag_ratio > 0


def count_tokens(batch: Batch, config: ModelConfig, pad: int) -> jax.Array:
    """The number [] of tokens of the targets that fit their graphs, bos and eos counted, in a batch [..., B, T]."""
    labels = labels_of(batch.source, batch.parallel, config, pad)
    return (labels.real & labels.fits[..., None]).sum()


def loss(
    net: Janus, objective: ObjectiveConfig, params: Params, terms: Collection[str], hidden: Mapping[str, jax.Array],
    batch: Batch, divisors: Mapping[str, jax.Array],
) -> SentenceTerms:  # fmt: skip
    """The loss of the graphs if "dag" is a term, its metrics, and the partners of AR slots if "kl_ar_dag" is a term.

    The paper takes the mean over sentences of -log p / T. Here the sum of -log p over the batch is divided by the sum of
    T. The two are equal where all targets of a batch have one length; else each token has the same weight here, as in
    the other terms, and each sentence there.
    """
    labels = labels_of(batch.source, batch.parallel, net.config, net.specials.pad)
    graph = graph_of(net, objective, params, hidden["dag"], labels)
    nll, has_path = negative_log_likelihood(graph, labels)
    nll, fixed = nll.sum(), jax.lax.stop_gradient(graph)
    counts = usage(fixed.links, labels.rows) | {"dag/unfit": labels.real.any(axis=1) & ~has_path}
    metrics = {name: value.sum() / divisors[divisor_of(name)] for name, value in counts.items()}
    metrics["nll/dag"] = nll / divisors[divisor_of("nll/dag")]
    values = {"dag": nll / divisors[term("dag").divisor]} if "dag" in terms else {}
    if "kl_ar_dag" not in terms:
        return SentenceTerms(values, metrics)
    partners = ar_partners(net.config, hidden["dag"], best_path(fixed, labels), labels, hidden["ar"].shape[1])
    return SentenceTerms(values, metrics, {"dag": partners})


def ar_partners(config: ModelConfig, rows: jax.Array, path: jax.Array, labels: Labels, slots: int) -> Partners:
    """For each of the U = `slots` AR slots, the vertex on the path [B, T] that gives the same token; rows [B, R, D]."""
    position = ar.predicted_position(jnp.arange(slots), config)
    valid = (labels.real & labels.fits[:, None])[:, position]
    return Partners(jnp.take_along_axis(rows, path[:, position][:, :, None], axis=1), valid)


def shown_tokens(
    net: Janus, objective: ObjectiveConfig, params: Params, rows: jax.Array, batch: Batch, *, ratio: jax.Array, rng: jax.Array
) -> jax.Array:  # fmt: skip
    """The target tokens that vertices read in glancing training [B, R] int32, from the `rows` [B, R, D] of a first pass."""
    labels = labels_of(batch.source, batch.parallel, net.config, net.specials.pad)
    path = best_path(graph_of(net, objective, params, rows, labels), labels)
    table = params["embed_tokens"]["embedding"]
    return glance(rows, table, labels, path, net.config, objective, ratio=ratio, dtype=net.dtype, rng=rng)


def glance(
    rows: jax.Array, table: jax.Array, labels: Labels, path: jax.Array, model: ModelConfig, objective: ObjectiveConfig, *,
    ratio: jax.Array, dtype: Any, rng: jax.Array,
) -> jax.Array:  # fmt: skip
    """The target tokens that vertices read in glancing training, [B, R] int32; -1: the vertex keeps its usual input.

    The number of chosen vertices is `ratio` times the number of target tokens that are not the likeliest token of their
    vertex on the path. They are drawn at random from the path. Its two ends read bos and eos anyway, so they are
    neither counted nor drawn. (Glancing: GLAT, Qian et al. 2021, arXiv 2008.07905.)

    Args:
      rows: [B, R, D] DAG rows of a first pass.
      table: [V', D] token table.
      labels: the targets.
      path: [B, T] int32, from `best_path`.
      model, objective: settings.
      ratio: [] float32, chosen vertices per wrong token.
      dtype: type of matrix products.
      rng: random key of the choice.
    """
    on_path = jnp.take_along_axis(rows, path[:, :, None], axis=1)
    best = likeliest(on_path, table, model, objective.projection_rows, dtype)
    behind = jnp.pad(labels.real[:, 1:], ((0, 0), (0, 1)))  # another token follows: not the last one, eos
    inner = behind & (jnp.arange(path.shape[1]) > 0) & labels.fits[:, None]
    shown = jnp.round(ratio * ((best != labels.tokens) & inner).sum(axis=1)).astype(jnp.int32)
    chosen = drawn(inner, shown, rng)
    at_row = (path[:, None] == jnp.arange(rows.shape[1])[:, None]) & chosen[:, None]  # [B, R, T], at most one in a row
    return jnp.where(at_row, labels.tokens[:, None], -1).max(axis=2)
