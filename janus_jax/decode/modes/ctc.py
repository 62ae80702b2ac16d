"""Mode ctc: one decoder pass, then the best path or a prefix beam search.

Legend: B sentences of a batch, K hypotheses a sentence, L longest hypothesis.
"""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import DecodeConfig
from janus_jax.decode.modes.ctc_search import check_ctc, hypothesis_limit, run_ctc
from janus_jax.decode.modes.rerank import run_rerank
from janus_jax.decode.search.candidates import Candidates, hypotheses_of, ranking
from janus_jax.decode.types import DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.types import Hypotheses


def run(request: DecodeRequest) -> DecodeResult:
    """The best path if the beam is 1, else the best prefixes, among which the AR half may choose."""
    net, params, decode, ctc = request.net, request.params, request.decode, request.decode.ctc
    limit = hypothesis_limit(net, request.source.shape[1], request.max_target_length)
    encoded, hypotheses = run_ctc(
        params,
        request.source,
        net=net,
        beam=ctc.beam,
        tokens=ctc.tokens,
        blank_penalty=ctc.blank_penalty,
        limit=limit,
    )
    if ctc.rerank == "ar":
        candidates = as_candidates(hypotheses, net.specials.bos)
        candidates = run_rerank(params, encoded, candidates, net=net, lenpen=decode.ar.lenpen)
        hypotheses = hypotheses_of(candidates, ranking(candidates, count=decode.nbest))
        return DecodeResult(hypotheses, {"passes": candidates.passes.max(axis=1)})
    hypotheses = jax.tree.map(lambda x: x[:, : decode.nbest], hypotheses)
    return DecodeResult(hypotheses, {"passes": np.ones(len(request.source), np.int32)})


def check(net: Janus, decode: DecodeConfig, longest: int) -> None:
    """Raises ConfigError if the model cannot decode sources of at most `longest` tokens by CTC."""
    check_ctc(net, longest, "mode")


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
