"""Reranking: the AR half scores the candidates of another mode, all in one pass.

Legend: B sentences of a batch, K candidates a sentence, T target slots.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp

from janus_jax.decode.modes.autoregression import tokens_before_bos
from janus_jax.decode.search.candidates import Candidates
from janus_jax.decode.search.vocab import by_chunks, log_probs_of
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Params


@functools.partial(jax.jit, static_argnames=("net", "lenpen"))
def run_rerank(params: Params, encoded: Encoded, candidates: Candidates, *, net: Janus, lenpen: float) -> Candidates:
    """The candidates with the scores of the AR half: sum of log-probabilities / tokens ** lenpen."""
    batch, count, slots = candidates.tokens.shape
    tokens = candidates.tokens.reshape(batch * count, slots)
    before = tokens_before_bos(net)
    fed = jnp.pad(tokens, ((0, 0), (before, 0)), constant_values=net.specials.eos)[:, :-1]
    # Padding is fed as eos, which has a position; no row before it attends to it.
    hidden = net.ar_rows(params, encoded, jnp.where(fed == net.specials.pad, net.specials.eos, fed))[:, before:]
    labels = tokens[:, 1:]

    def score(rows: Array, ids: Array) -> Array:
        return log_probs_of(net.project(params, rows), ids)

    scores = by_chunks(score, hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1), chunk=2048)
    scores = jnp.where(labels != net.specials.pad, scores.reshape(labels.shape), 0.0)
    lengths = jnp.maximum((labels != net.specials.pad).sum(axis=1), 1)
    means = scores.sum(axis=1) / lengths.astype(jnp.float32) ** lenpen
    return replace(
        candidates,
        scores=means.reshape(batch, count),
        token_scores=jnp.pad(scores, ((0, 0), (1, 0))).reshape(batch, count, slots),
        passes=candidates.passes + 1,
    )
