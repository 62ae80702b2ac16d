"""What the modes share whose rows follow from the source alone (CTC, DAG).

Legend: B sentences of a batch, R rows, X rows of several sentences, k tokens that a row offers, K hypotheses a sentence,
L longest hypothesis, D model width, V' padded vocabulary.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from janus_jax.config import ConfigError
from janus_jax.decode.modes.rerank import run_rerank
from janus_jax.decode.search.candidates import Candidates, hypotheses_of, ranking
from janus_jax.decode.search.vocab import argmax, by_chunks, forbid
from janus_jax.decode.types import DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.settings import rows_of_source
from janus_jax.types import Array, Encoded, Hypotheses, Params


def check_source_rows(
    net: Janus,
    family: Literal["ctc", "dag"],
    longest: int,
    key: str = "mode",
    instead: str = "choose another mode",
) -> None:
    """Raises what is wrong if the family's rows cannot decode sources of at most `longest` tokens.

    Args:
      net: the model.
      family: of the rows.
      longest: tokens of the longest source, bos and eos counted.
      key, instead: the setting that asks for these rows, and what to do with it, for the message.

    Raises:
      ConfigError: the model has no such rows, or fewer positions than rows.
    """
    ratio, name = getattr(net.config, f"{family}_ratio"), family.upper()
    if not ratio:
        raise ConfigError(
            f"config.decode.{key}: this model has no {name} rows (model.{family}_ratio 0); {instead}, or train objective "
            f"janus_{family} or {family}"
        )
    if (rows := rows_of_source(ratio, longest)) > net.config.max_positions:
        raise ConfigError(
            f"config.model.max_positions: {net.config.max_positions} positions do not hold the {rows} {name} rows of a source of "
            f"{longest} tokens; shorten it, {instead}, or lower max_source_length"
        )


def offered_tokens(
    net: Janus, params: Params, rows: Array, count: int, blank: bool = False
) -> tuple[Array, Array, Array | None]:
    """The k likeliest tokens of rows [B, R, D]; of the special tokens only unk may be among them.

    Args:
      net, params: the model.
      rows: the hidden rows.
      count: k; fewer, if the vocabulary has fewer tokens.
      blank: whether the rows may also give CTC's blank.

    Returns:
      Tokens [B, R, k] int32, their log-probabilities [B, R, k], and those of the blank [B, R] or None.
    """
    special = net.specials
    banned = [special.bos, special.pad, special.eos]
    banned += [special.mask] if special.mask != special.unk else []
    count = min(count, net.config.vocab_size - len(banned))

    def of_part(part: Array) -> tuple[Array, ...]:
        logits = net.project(params, part, blank=blank)
        total = jax.nn.logsumexp(logits, axis=-1)
        tokens = logits + forbid(logits.shape[-1], banned, net.config.vocab_size)
        if count == 1:
            best = argmax(tokens)[:, None]
            scores = jnp.take_along_axis(tokens, best, axis=-1)
        else:
            scores, best = lax.top_k(tokens, count)
        offered = best.astype(jnp.int32), scores - total[:, None]
        return (*offered, logits[:, net.blank] - total) if blank else offered

    parts = by_chunks(of_part, rows.reshape(-1, rows.shape[-1]), chunk=2048)
    tokens, scores, *blanks = (x.reshape(*rows.shape[:2], *x.shape[1:]) for x in parts)
    return tokens, scores, blanks[0] if blanks else None


def best_or_reranked(
    request: DecodeRequest,
    encoded: Encoded,
    hypotheses: Hypotheses,
    rerank: Literal["none", "ar"],
    *,
    has_token_scores: bool,
) -> DecodeResult:
    """The best hypotheses of a search of one pass, or those that the AR half scores best.

    Args:
      request: what is decoded.
      encoded: the sources.
      hypotheses: [B, K, L], best first.
      rerank: who chooses.
      has_token_scores: whether the search gave its tokens scores; the AR half always does.
    """
    net, decode = request.net, request.decode
    if rerank == "none":
        best = jax.tree.map(lambda x: x[:, : decode.nbest], hypotheses)
        passes = np.ones(len(request.source), np.int32)
        return DecodeResult(best, {"passes": passes}, has_token_scores=has_token_scores)
    candidates = run_rerank(
        request.params, encoded, as_candidates(hypotheses, net.specials.bos), net=net, lenpen=decode.ar.lenpen
    )
    best = hypotheses_of(candidates, ranking(candidates, count=decode.nbest))
    return DecodeResult(best, {"passes": candidates.passes.max(axis=1)})


def as_candidates(hypotheses: Hypotheses, bos: int) -> Candidates:
    """Hypotheses [B, K, L] as candidates [B, K, L + 1] for reranking; one of length 0 is empty."""
    return Candidates(
        tokens=jnp.pad(hypotheses.tokens, ((0, 0), (0, 0), (1, 0)), constant_values=bos),
        lengths=hypotheses.lengths + 1,
        scores=hypotheses.scores,
        token_scores=jnp.pad(hypotheses.token_scores, ((0, 0), (0, 0), (1, 0))),
        empty=hypotheses.lengths <= 1,
        passes=jnp.ones_like(hypotheses.lengths),
        trace=None,
    )
