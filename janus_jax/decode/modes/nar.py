"""Mode nar: mask-predict over several lengths, or of the gaps of a target.

Legend: B sentences of a batch, S padded source length, T target slots, K length candidates, n outputs a sentence.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.decode.batching import bucket
from janus_jax.decode.modes.filling import (
    FillSettings,
    check_lengths,
    fill,
    fill_settings,
    longest_target,
    rules_of,
    run_lengths,
)
from janus_jax.decode.modes.rerank import run_rerank
from janus_jax.decode.search.candidates import (
    Candidates,
    MaskPredictRules,
    Trace,
    hypotheses_of,
    merged,
    ranking,
    trace_of,
    with_length_scores,
)
from janus_jax.decode.types import DecodePlan, DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


def run(request: DecodeRequest) -> DecodeResult:
    """Mask-predict over lengths from the length head, or of the masks of `request.start`."""
    net, params, decode = request.net, request.params, request.decode
    longest = longest_target(net, request.max_target_length)
    rules = rules_of(decode, gaps=request.start is not None)
    settings = fill_settings(decode, decode.nar.passes, rules)
    count = decode.nar.length_beam if request.start is None else 1
    encoded, lengths = run_lengths(params, request.source, net=net, count=count, limit=longest, rules=rules_of(decode))
    if request.start is None:
        start = None
        # The number of slots is part of a compiled shape: it has to be known on the host.
        limit = min(bucket(int(np.max(lengths)), at_least=8, halves=True), longest)
    else:
        start = jnp.asarray(request.start)[:, None]
        lengths = jnp.maximum((request.start != net.specials.pad).sum(axis=1), 2)[:, None]
        limit = request.start.shape[1]
    candidates = run_nar(params, encoded, lengths, start, net=net, settings=settings, limit=limit, trace=request.trace)
    # Given tokens stay, repeated or not.
    merge = decode.nar.merge_repeats and request.start is None
    if decode.nar.rerank == "ar":
        if merge:  # AR judges what is output
            candidates, merge = merged(candidates, pad=net.specials.pad), False
        candidates = run_rerank(params, encoded, candidates, net=net, lenpen=decode.ar.lenpen)
    hypotheses, passes, trace = _run_ranking(candidates, rules=rules_of(decode), count=decode.nbest)
    return DecodeResult(hypotheses, {"passes": passes}, trace, merge_repeats=merge)


def check(plan: DecodePlan) -> None:
    """Raises ValueError if more lengths are wanted than there are. Targets that are given have their lengths."""
    if plan.longest_source and not plan.has_targets:
        check_lengths(plan, plan.decode.nar.length_beam)


@functools.partial(jax.jit, static_argnames=("net", "settings", "limit", "trace"))
def run_nar(
    params: Params,
    encoded: Encoded,
    lengths: Array,
    start: Array | None,
    *,
    net: Janus,
    settings: FillSettings,
    limit: int,
    trace: bool,
) -> Candidates:
    """Fills targets of these lengths [B, K], or the masks of `start` [B, 1, T]."""
    projected = net.project_source(params, encoded)
    candidates = fill(net, params, encoded, projected, lengths, start, settings, limit, trace)
    if settings.rules.score_length and start is None:
        candidates = with_length_scores(candidates, encoded.length_logits, lengths)
    return candidates


@functools.partial(jax.jit, static_argnames=("rules", "count"))
def _run_ranking(
    candidates: Candidates, *, rules: MaskPredictRules, count: int
) -> tuple[Hypotheses, Array, Trace | None]:
    """The best `count` candidates of each sentence, decoder passes [B], and the trace of the best."""
    best = ranking(candidates, rules, count)
    return hypotheses_of(candidates, best), candidates.passes.max(axis=1), trace_of(candidates, best[:, 0])
