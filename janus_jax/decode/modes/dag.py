"""Mode dag: one decoder pass gives a graph of outputs, then a search for a path, or for the output of many paths.

Legend: B sentences of a batch, S padded source length, R DAG rows, k tokens that a row offers, K hypotheses a sentence,
L longest hypothesis, D model width, H heads.
"""

import functools

import jax
import jax.numpy as jnp

from janus_jax.config import DagDecode
from janus_jax.decode.modes.source_rows import best_or_reranked, check_source_rows, offered_tokens
from janus_jax.decode.search.graph import Graph, beam_search, follow, viterbi
from janus_jax.decode.types import DecodePlan, DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.model.attention import NEGATIVE
from janus_jax.types import Array, Encoded, Hypotheses, Params


def run(request: DecodeRequest) -> DecodeResult:
    """The output of a path, or the best outputs of a beam, among which the AR half may choose."""
    net, params, decode = request.net, request.params, request.decode
    # At most one token a row; the last row gives eos, and the first bos, which is no token of a hypothesis.
    limit = max(1, min(net.config.dag_slots(request.source.shape[1]), request.max_target_length) - 1)
    encoded, hypotheses = run_dag(params, request.source, net=net, settings=decode.dag, limit=limit)
    return best_or_reranked(
        request, encoded, hypotheses, decode.dag.rerank, has_token_scores=decode.dag.search != "beam"
    )


def check(plan: DecodePlan) -> None:
    """Raises ConfigError if the model has no DAG rows, or fewer positions than rows of the longest source."""
    check_source_rows(plan.net, "dag", plan.longest_source)


@functools.partial(jax.jit, static_argnames=("net", "settings", "limit"))
def run_dag(
    params: Params, source: Array, *, net: Janus, settings: DagDecode, limit: int
) -> tuple[Encoded, Hypotheses]:
    """Encodes source [B, S] and searches the graph of its DAG rows; hypotheses [B, K, L], K 1 or settings.beam.

    Args:
      params, source, net: the model and the sources.
      settings: of the mode.
      limit: L.
    """
    encoded = net.encode(params, source)
    rows, real = net.source_rows(params, "dag", source, encoded)
    graph = _graph(net, params, rows, real, settings.tokens if settings.search == "beam" else 1)
    shared = {"length_beta": settings.length_beta, "limit": limit, "specials": net.specials}
    if settings.search == "beam":
        return encoded, beam_search(graph, beam=settings.beam, **shared)
    if settings.search == "viterbi":
        return encoded, viterbi(graph, **shared)
    return encoded, follow(graph, beta=settings.beta if settings.search == "lookahead" else 0.0, **shared)


def _graph(net: Janus, params: Params, rows: Array, real: Array, offered: int) -> Graph:
    """The graph of DAG rows [B, R, D] with their k likeliest tokens; of the special tokens only unk may be among them."""
    tokens, log_probs, _ = offered_tokens(net, params, rows, offered)
    links = net.dag_links(params, rows, real)
    return Graph(jnp.where(links > NEGATIVE / 2, links, -jnp.inf), tokens, log_probs, real)
