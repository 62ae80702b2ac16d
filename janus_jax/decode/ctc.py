"""Decoding of a batch by the CTC half: one pass of rows, then the best path or a prefix beam search, bound to the model and
jitted.

Legend: B sentences of a batch, S padded source length, R CTC rows, k tokens that a row offers, K hypotheses, L longest
hypothesis, T = L + 1 target slots, D model width.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.config import ConfigError, DecodeConfig
from janus_jax.decode.candidates import Candidates, hypotheses_of, ranking
from janus_jax.decode.nar import run_rerank
from janus_jax.decode.prefix_beam import Emissions, collapse, prefix_beam_search
from janus_jax.decode.request import Found, Request
from janus_jax.decode.vocab import argmax, by_chunks, forbid
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


def decode_ctc(request: Request) -> Found:
    """The best path (beam 1) or the best prefixes; the AR half may choose among the latter."""
    net, params, decode = request.net, request.params, request.static
    limit = hypothesis_limit(net, request.source.shape[1], request.max_target_length)
    encoded, found = run_ctc(params, request.source, net=net, decode=decode, limit=limit)
    if decode.rerank == "ar":
        candidates = run_rerank(params, encoded, candidates_of(found, net.specials.bos), net=net, decode=decode)
        found = hypotheses_of(candidates, ranking(candidates, count=decode.nbest))
        return Found(found, {"passes": candidates.passes.max(axis=1)})
    found = jax.tree.map(lambda x: x[:, : decode.nbest], found)
    return Found(found, {"passes": np.ones(len(request.source), np.int32)})


def check_model(net: Janus, longest: int, key: str = "mode") -> None:
    """Raises ConfigError where the model has no CTC rows, or no positions for those of a source of `longest` tokens."""
    if not net.config.ctc_ratio:
        raise ConfigError(
            f"config.decode.{key}: this model has no CTC rows (model.ctc_ratio 0); decode with mode ar or nar, or train "
            "objective janus_ctc or ctc"
        )
    if (rows := net.config.ctc_slots(longest)) > net.config.max_positions:
        raise ConfigError(
            f"config.model.max_positions: {net.config.max_positions} positions do not hold the {rows} CTC rows of a source of "
            f"{longest} tokens; cut it, or lower max_source_length"
        )


def hypothesis_limit(net: Janus, source_length: int, max_target_length: int) -> int:
    """L: a token a row at most, and eos."""
    return min(net.config.ctc_slots(source_length) + 1, max_target_length - 1)


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit"))
def run_ctc(
    params: Params, source: Array, *, net: Janus, decode: DecodeConfig, limit: int
) -> tuple[Encoded, Hypotheses]:
    """The encoding, and hypotheses [B, K, L], K = decode.beam."""
    encoded = net.encode(params, source)
    rows, real = net.ctc_rows(params, source, encoded)
    emitted = emissions(net, params, rows, real, 1 if decode.beam == 1 else decode.ctc_tokens)
    emitted = replace(emitted, blank=emitted.blank - decode.blank_penalty)
    if decode.beam == 1:
        return encoded, collapse(emitted, limit=limit, specials=net.specials)
    return encoded, prefix_beam_search(emitted, beam=decode.beam, limit=limit, specials=net.specials)


def emissions(net: Janus, params: Params, rows: Array, real: Array, offered: int) -> Emissions:
    """The k likeliest tokens of CTC rows [B, R, D]; special tokens but unk are never among them."""
    special = net.specials
    banned = [special.bos, special.pad, special.eos]
    banned += [special.mask] if special.mask != special.unk else []
    offered = min(offered, net.config.vocab_size - len(banned))

    def of(part: Array) -> tuple[Array, Array, Array]:
        logits = net.project(params, part, blank=True)
        total = jax.nn.logsumexp(logits, axis=-1)
        blank = logits[:, net.blank] - total
        tokens = logits + forbid(logits.shape[-1], banned, net.config.vocab_size)
        if offered == 1:
            best = argmax(tokens)[:, None]
            scores = jnp.take_along_axis(tokens, best, axis=-1)
        else:
            scores, best = lax.top_k(tokens, offered)
        return best.astype(jnp.int32), scores - total[:, None], blank

    found = by_chunks(of, rows.reshape(-1, rows.shape[-1]), chunk=2048)
    tokens, scores, blank = (x.reshape(*real.shape, *x.shape[1:]) for x in found)
    return Emissions(tokens, scores, blank, real)


def candidates_of(found: Hypotheses, bos: int) -> Candidates:
    """Hypotheses [B, K, L] as candidates [B, K, L + 1] for reranking; one that isn't there is empty."""
    return Candidates(
        tokens=jnp.pad(found.tokens, ((0, 0), (0, 0), (1, 0)), constant_values=bos),
        lengths=found.lengths + 1,
        scores=found.scores,
        token_scores=jnp.pad(found.token_scores, ((0, 0), (0, 0), (1, 0))),
        empty=found.lengths <= 1,
        passes=jnp.ones_like(found.lengths),
        trace=None,
    )


def drafts_of(found: Hypotheses, slots: int, bos: int, eos: int) -> tuple[Array, Array]:
    """The best path of each sentence as a draft [B, 1, T] of `slots`, bos ... eos, eos behind it too, and its lengths [B, 1]."""
    tokens = found.tokens[:, :1, : slots - 1]
    lengths = jnp.clip(found.lengths[:, :1] + 1, 2, slots)
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (1, slots - 1 - tokens.shape[-1])), constant_values=bos)
    return jnp.where(jnp.arange(slots) < lengths[..., None] - 1, tokens, eos).astype(jnp.int32), lengths


def behind_emitted(draft: Array, tokens: Array, emitted: Array, eos: int) -> Array:
    """A whole draft moved to where it continues what is emitted.

    Of the drafted tokens that equal the last emitted one the nearest counts; where there is none, the one in its slot.

    Args:
      draft: [B, 1, T] as `drafts_of` makes it.
      tokens: [B, 1, T] bos and emitted tokens; what stands behind them means nothing.
      emitted: [B, 1] int32, tokens emitted.
      eos: stands behind the draft.

    Returns:
      [B, 1, T] the emitted tokens, the rest of the draft, eos.
    """
    slot, at = jnp.arange(draft.shape[-1]), emitted[..., None]
    last = jnp.take_along_axis(tokens, at, axis=-1)
    distance = jnp.where(draft == last, jnp.abs(slot - at), draft.shape[-1])
    nearest = jnp.argmin(distance, axis=-1)[..., None]
    there = jnp.take_along_axis(distance, nearest, axis=-1) < draft.shape[-1]
    source = slot + jnp.where(there, nearest - at, 0)
    moved = jnp.take_along_axis(draft, jnp.clip(source, 0, draft.shape[-1] - 1), axis=-1)
    return jnp.where(slot <= at, tokens, jnp.where(source < draft.shape[-1], moved, eos))
