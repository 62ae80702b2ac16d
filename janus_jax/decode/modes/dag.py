"""Mode dag: one decoder pass gives a graph of outputs, then a search for a path, or for the output of many paths.

Legend: B sentences of a batch, S padded source length, R DAG rows, k tokens that a row offers, K hypotheses a sentence,
L longest hypothesis, D model width, H heads.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.config import ConfigError, DagDecode, DecodeConfig
from janus_jax.decode.modes.ctc import as_candidates
from janus_jax.decode.modes.rerank import run_rerank
from janus_jax.decode.search.candidates import hypotheses_of, ranking
from janus_jax.decode.search.graph import Graph, beam_search, follow, viterbi
from janus_jax.decode.search.vocab import argmax, by_chunks, forbid
from janus_jax.decode.types import DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.model.attention import NEGATIVE
from janus_jax.types import Array, Encoded, Hypotheses, Params


def run(request: DecodeRequest) -> DecodeResult:
    """The output of a path, or the best outputs of a beam, among which the AR half may choose."""
    net, params, decode = request.net, request.params, request.decode
    # At most one token a row; the last row gives eos, and the first bos, which is no token of a hypothesis.
    limit = max(1, min(net.config.dag_slots(request.source.shape[1]), request.max_target_length) - 1)
    encoded, hypotheses = run_dag(params, request.source, net=net, settings=decode.dag, limit=limit)
    if decode.dag.rerank == "ar":
        candidates = as_candidates(hypotheses, net.specials.bos)
        candidates = run_rerank(params, encoded, candidates, net=net, lenpen=decode.ar.lenpen)
        hypotheses = hypotheses_of(candidates, ranking(candidates, count=decode.nbest))
        return DecodeResult(hypotheses, {"passes": candidates.passes.max(axis=1)})
    hypotheses = jax.tree.map(lambda x: x[:, : decode.nbest], hypotheses)
    return DecodeResult(hypotheses, {"passes": np.ones(len(request.source), np.int32)})


def check(net: Janus, decode: DecodeConfig, longest: int) -> None:
    """Raises what is wrong if DAG rows cannot decode sources of at most `longest` tokens, bos and eos counted.

    Raises:
      ConfigError: the model has no DAG rows, or fewer positions than rows.
    """
    if not net.config.dag_ratio:
        raise ConfigError(
            "config.decode.mode: this model has no DAG rows (model.dag_ratio 0); decode with another mode, or train objective "
            "janus_dag or dag"
        )
    if (rows := net.config.dag_slots(longest)) > net.config.max_positions:
        raise ConfigError(
            f"config.model.max_positions: {net.config.max_positions} positions do not hold the {rows} DAG rows of a source of "
            f"{longest} tokens; cut it, or lower max_source_length"
        )


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
    special = net.specials
    banned = [special.bos, special.pad, special.eos]
    banned += [special.mask] if special.mask != special.unk else []
    offered = min(offered, net.config.vocab_size - len(banned))

    def of_part(part: Array) -> tuple[Array, Array]:
        logits = net.project(params, part)
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        logits += forbid(logits.shape[-1], banned, net.config.vocab_size)
        if offered == 1:
            best = argmax(logits)[:, None]
            scores = jnp.take_along_axis(logits, best, axis=-1)
        else:
            scores, best = lax.top_k(logits, offered)
        return best.astype(jnp.int32), scores - total

    parts = by_chunks(of_part, rows.reshape(-1, rows.shape[-1]), chunk=2048)
    tokens, log_probs = (x.reshape(*real.shape, -1) for x in parts)
    links = net.dag_links(params, rows, real)
    return Graph(jnp.where(links > NEGATIVE / 2, links, -jnp.inf), tokens, log_probs, real)
