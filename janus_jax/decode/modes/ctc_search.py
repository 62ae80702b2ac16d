"""The CTC half bound to its searches: one pass of rows, then the best path or a prefix beam search.

Legend: B sentences of a batch, S padded source length, R CTC rows, k tokens that a row offers, K hypotheses, L longest
hypothesis, D model width.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.config import ConfigError
from janus_jax.decode.search.prefix_beam import Emissions, collapse, prefix_beam_search
from janus_jax.decode.search.vocab import argmax, by_chunks, forbid
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


def check_ctc(net: Janus, longest: int, key: str) -> None:
    """Raises what is wrong if CTC cannot decode sources of at most `longest` tokens.

    Args:
      net: the model.
      longest: tokens of the longest source, bos and eos counted.
      key: the setting that asks for CTC, for the message.

    Raises:
      ConfigError: the model has no CTC rows, or fewer positions than rows.
    """
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
    """L: at most one token a row, and eos."""
    return min(net.config.ctc_slots(source_length) + 1, max_target_length - 1)


@functools.partial(jax.jit, static_argnames=("net", "beam", "tokens", "blank_penalty", "limit"))
def run_ctc(
    params: Params, source: Array, *, net: Janus, beam: int, tokens: int, blank_penalty: float, limit: int
) -> tuple[Encoded, Hypotheses]:
    """Encodes source [B, S] and searches its CTC rows; hypotheses [B, K, L], K = beam.

    Args:
      params, source, net: the model and the sources.
      beam, tokens, blank_penalty: as in `config.CtcDecode`.
      limit: L.
    """
    encoded = net.encode(params, source)
    rows, real = net.source_rows(params, "ctc", source, encoded)
    emitted = _emissions(net, params, rows, real, 1 if beam == 1 else tokens)
    emitted = replace(emitted, blank=emitted.blank - blank_penalty)
    if beam == 1:
        return encoded, collapse(emitted, limit=limit, specials=net.specials)
    return encoded, prefix_beam_search(emitted, beam=beam, limit=limit, specials=net.specials)


def _emissions(net: Janus, params: Params, rows: Array, real: Array, offered: int) -> Emissions:
    """The k likeliest tokens of CTC rows [B, R, D]; of the special tokens only unk may be among them."""
    special = net.specials
    banned = [special.bos, special.pad, special.eos]
    banned += [special.mask] if special.mask != special.unk else []
    offered = min(offered, net.config.vocab_size - len(banned))

    def of_part(part: Array) -> tuple[Array, Array, Array]:
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

    parts = by_chunks(of_part, rows.reshape(-1, rows.shape[-1]), chunk=2048)
    tokens, scores, blank = (x.reshape(*real.shape, *x.shape[1:]) for x in parts)
    return Emissions(tokens, scores, blank, real)
