"""Mode ctc: one decoder pass, then the best path or a prefix beam search."""

from janus_jax.decode.modes.ctc_search import hypothesis_limit, run_ctc
from janus_jax.decode.modes.source_rows import best_or_reranked, check_source_rows
from janus_jax.decode.types import DecodePlan, DecodeRequest, DecodeResult


def run(request: DecodeRequest) -> DecodeResult:
    """The best path if the beam is 1, else the best prefixes, among which the AR half may choose."""
    net, params, ctc = request.net, request.params, request.decode.ctc
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
    return best_or_reranked(request, encoded, hypotheses, ctc.rerank, has_token_scores=ctc.beam == 1)


def check(plan: DecodePlan) -> None:
    """Raises ConfigError if the model has no CTC rows, or fewer positions than rows of the longest source."""
    check_source_rows(plan.net, "ctc", plan.longest_source)
