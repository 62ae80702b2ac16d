"""Non-autoregressive decoding of a batch: mask-predict and reranking, bound to the model and jitted.

Legend: B sentences of a batch, S padded source length, T target slots, K length candidates.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import DecodeConfig
from janus_jax.decode import batches
from janus_jax.decode.ar import cached_tokens
from janus_jax.decode.candidates import (
    Candidates,
    MaskPredictRules,
    Trace,
    candidate_lengths,
    hypotheses_of,
    ranking,
    trace_of,
    with_length_scores,
)
from janus_jax.decode.mask_predict import mask_predict
from janus_jax.decode.request import Found, Request
from janus_jax.decode.vocab import by_chunks, log_probs_of
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


def decode_nar(request: Request) -> Found:
    """Mask-predict, over lengths from the length head or for given targets."""
    net, params, decode = request.net, request.params, request.static
    longest = min(request.max_target_length, net.config.length_classes - 1)
    if request.start is None:
        encoded, lengths = run_lengths(
            params, request.source, net=net, count=decode.length_beam, limit=longest, decode=decode
        )
        # The number of slots is part of a compiled shape, so that it is known only now.
        limit = min(batches.bucket(int(np.max(lengths)), at_least=8, halves=True), longest)
        candidates = run_nar(params, encoded, lengths, None, net=net, decode=decode, limit=limit, trace=request.trace)
    else:
        encoded, _ = run_lengths(params, request.source, net=net, count=1, limit=longest, decode=decode)
        lengths = jnp.maximum((request.start != net.specials.pad).sum(axis=1), 2)[:, None]
        start = jnp.asarray(request.start)[:, None]
        candidates = run_nar(
            params, encoded, lengths, start, net=net, decode=decode, limit=request.start.shape[1], trace=request.trace
        )
    if decode.rerank == "ar":
        candidates = run_rerank(params, encoded, candidates, net=net, decode=decode)
    hypotheses, passes, trace = _run_choice(candidates, rules=rules_of(decode), count=decode.nbest)
    return Found(hypotheses, {"passes": passes}, trace)


@functools.partial(jax.jit, static_argnames=("rules", "count"))
def _run_choice(
    candidates: Candidates, *, rules: MaskPredictRules, count: int
) -> tuple[Hypotheses, Array, Trace | None]:
    """The best `count` candidates of each sentence, decoder passes [B], the trace of the best."""
    best = ranking(candidates, rules, count)
    return hypotheses_of(candidates, best), candidates.passes.max(axis=1), trace_of(candidates, best[:, 0])


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit", "count"))
def run_lengths(
    params: Params, source: Array, *, net: Janus, decode: DecodeConfig, limit: int, count: int
) -> tuple[Encoded, Array]:
    """The encoding, and lengths [B, count] to try."""
    encoded = net.encode(params, source)
    lengths = candidate_lengths(encoded.length_logits, count, limit=limit, rules=rules_of(decode))
    return encoded, jnp.where(jnp.any(encoded.mask, axis=1, keepdims=True), lengths, 2)  # empty rows: bos, eos


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit", "trace"))
def run_nar(
    params: Params,
    encoded: Encoded,
    lengths: Array,
    start: Array | None,
    *,
    net: Janus,
    decode: DecodeConfig,
    limit: int,
    trace: bool,
) -> Candidates:
    """Fills targets of these lengths [B, K], or the masks of `start` [B, 1, T]."""
    projected = net.project_source(params, encoded)
    rules = rules_of(decode, gaps=start is not None)
    candidates = fill(net, params, encoded, projected, lengths, start, decode, decode.passes, limit, rules, trace)
    if rules.score_length and start is None:
        candidates = with_length_scores(candidates, encoded.length_logits, lengths)
    return candidates


def fill(
    net: Janus,
    params: Params,
    encoded: Encoded,
    projected: Any,
    lengths: Array,
    start: Array | None,
    decode: DecodeConfig,
    passes: int,
    limit: int,
    rules: MaskPredictRules,
    trace: bool = False,
) -> Candidates:
    """Mask-predict by the model; see `mask_predict`."""
    return mask_predict(
        lambda tokens, slots: net.nar_rows(params, encoded, tokens, slots, projected),
        lengths,
        passes=passes,
        specials=net.specials,
        limit=limit,
        vocab_size=net.config.vocab_size,
        rules=rules,
        start=start,
        schedule=decode.mask_schedule,
        early_stop=decode.early_stop,
        project_fn=functools.partial(net.project, params),
        trace=trace,
    )


@functools.partial(jax.jit, static_argnames=("net", "decode"))
def run_rerank(
    params: Params, encoded: Encoded, candidates: Candidates, *, net: Janus, decode: DecodeConfig
) -> Candidates:
    """The candidates with the scores that the AR half gives them, all in one parallel pass more."""
    batch, drafts, slots = candidates.tokens.shape
    tokens = candidates.tokens.reshape(batch * drafts, slots)
    before = cached_tokens(net)
    fed = jnp.pad(tokens, ((0, 0), (before, 0)), constant_values=net.specials.eos)[:, :-1]
    # Padding is fed as eos, which has a position; nothing before it sees it.
    hidden = net.ar_rows(params, encoded, jnp.where(fed == net.specials.pad, net.specials.eos, fed))[:, before:]
    labels = tokens[:, 1:]

    def score(rows: Array, ids: Array) -> Array:
        return log_probs_of(net.project(params, rows), ids)

    scores = by_chunks(score, hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1), chunk=2048)
    scores = jnp.where(labels != net.specials.pad, scores.reshape(labels.shape), 0.0)
    count = jnp.maximum((labels != net.specials.pad).sum(axis=1), 1)
    means = scores.sum(axis=1) / count.astype(jnp.float32) ** decode.lenpen
    return replace(
        candidates,
        scores=means.reshape(batch, drafts),
        token_scores=jnp.pad(scores, ((0, 0), (1, 0))).reshape(batch, drafts, slots),
        passes=candidates.passes + 1,
    )


def rules_of(decode: DecodeConfig, gaps: bool = False) -> MaskPredictRules:
    """The rules of mask-predict that a configuration asks for; with `gaps`, for targets that are partly given."""
    if decode.rules == "released":
        return MaskPredictRules.RELEASED
    if gaps:
        return MaskPredictRules.GAPS
    return replace(MaskPredictRules.SOUND, lengths=decode.lengths)
