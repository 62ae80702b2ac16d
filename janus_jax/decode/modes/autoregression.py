"""The AR half bound to the searches that emit a token at a time: callbacks, limits, and the compiled search.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, N hypotheses of a batch, P prefix tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ArDecode
from janus_jax.decode.search.beam import beam_search
from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.greedy import greedy_search
from janus_jax.decode.search.sampling import PickFn, sampler
from janus_jax.decode.types import DecodeRequest, DecodeResult
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params

_LIMIT_STEP = 16  # tokens to whose multiples L is rounded


def decode_ar(request: DecodeRequest, settings: ArDecode, nbest: int) -> DecodeResult:
    """Beam search, greedy search if the beam is 1, or sampling.

    Args:
      request: the batch.
      settings: of the search; those of the request are not read.
      nbest: outputs a sentence.
    """
    limit, max_lengths = ar_limits(request, settings)
    released = request.decode.rules == "released"
    hypotheses, passes = _run_ar(
        request.params,
        request.source,
        max_lengths,
        request.prefix,
        lines_of(request),
        settings.seed,
        net=request.net,
        settings=compiled_settings(settings, released),
        constraints=ar_constraints(request.net, settings, released),
        nbest=nbest,
        limit=limit,
    )
    return DecodeResult(hypotheses, {"passes": passes})


def compiled_settings(settings: ArDecode, released: bool) -> ArDecode:
    """The settings with a fixed value in place of each that the compiled search does not depend on."""
    # The seed and the limits on the length are arguments of the search.
    settings = replace(settings, seed=0, max_length_a=0.0, max_length_b=0)
    if settings.sample:
        return replace(settings, beam=1, stop="best")
    stop = "released" if released else settings.stop
    return replace(settings, stop="best" if settings.beam == 1 else stop, temperature=1.0, top_k=0, top_p=1.0)


def ar_hypotheses(settings: ArDecode, nbest: int) -> int:
    """How many hypotheses the search keeps for a sentence."""
    return nbest if settings.sample else settings.beam


def ar_limits(request: DecodeRequest, settings: ArDecode) -> tuple[int, np.ndarray]:
    """L, and the most tokens [B] of each sentence, eos counted; 0 for sentences that are all padding.

    No sentence has more than L tokens; L may be larger than all of them need.
    """
    source, pad = request.source, request.net.specials.pad
    cap = request.max_target_length - 1  # bos is not counted
    forced = 0 if request.prefix is None else (request.prefix != pad).sum(axis=1)
    inner = np.maximum((source != pad).sum(axis=1) - 2, 0)
    # The cap comes before the integers: a product may exceed 32 bits.
    allowed = np.minimum(settings.max_length_a * inner + settings.max_length_b, cap).astype(np.int32) + 1
    allowed = np.minimum(np.maximum(allowed, forced + 1), cap)
    limit = int(min(settings.max_length_a * (source.shape[1] - 2) + settings.max_length_b, cap)) + 1
    limit = min(max(limit, 0 if request.prefix is None else request.prefix.shape[1] + 1), cap)
    # The search is compiled for each L: a caller who names another limit each time gets few programs.
    limit = min(-(-limit // _LIMIT_STEP) * _LIMIT_STEP, cap)
    return limit, np.where(inner > 0, allowed, 0).astype(np.int32)


def ar_constraints(net: Janus, settings: ArDecode, released: bool) -> Constraints:
    """What may be emitted; `released`: the released decoders forbid pad alone."""
    vocab = net.config.vocab_size
    rules = {"min_length": max(settings.min_length, 1), "no_repeat_ngram": settings.no_repeat_ngram}
    if released:
        return Constraints((net.specials.pad,), vocab, **rules)
    return Constraints.default(net.specials, vocab, **rules)


def ar_callbacks(
    net: Janus, params: Params, encoded: Encoded, projected: Any, per_sentence: int, reordered: bool
) -> tuple[Callable[[Array, Any], tuple[Array, Any]], Callable[[int], Any]]:
    """The model as a search sees it.

    Args:
      net, params, encoded: the model, and its encoding of B sentences.
      projected: `net.project_source(params, encoded)`.
      per_sentence: N / B, hypotheses of a sentence.
      reordered: the search reorders them.

    Returns:
      A function (tokens [N, k], cache) -> (rows [N, k, D] that predict their successors, longer cache), and a function
      length -> empty cache for so many tokens.
    """
    before_bos = tokens_before_bos(net)

    def step(tokens: Array, cache: Any) -> tuple[Array, Any]:
        return net.ar_step(params, tokens, cache)

    def empty_cache(length: int) -> Any:
        cache = net.init_cache(params, encoded, per_sentence, length + before_bos, projected, reordered)
        if before_bos:
            count = encoded.states.shape[0] * per_sentence
            cache = net.ar_step(params, jnp.full((count, 1), net.specials.eos), cache)[1]
        return cache

    return step, empty_cache


def sampler_of(settings: ArDecode, seed: Array, lines: Array, count: int) -> PickFn:
    """The random choice of `count` samples a sentence; it depends on the sentences' line numbers [B], not on their batch."""
    numbers = jnp.repeat(lines, count) * count + jnp.tile(jnp.arange(count), len(lines))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
    return sampler(keys, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)


def lines_of(request: DecodeRequest) -> np.ndarray:
    """The line numbers [B] of the sentences; their places in the batch if the request has none."""
    return np.arange(len(request.source), dtype=np.int32) if request.lines is None else request.lines


def tokens_before_bos(net: Janus) -> int:
    """Tokens before bos in the cache: with ar_start "eos" the first slot predicts bos from an eos."""
    return 1 if net.config.ar_start == "eos" else 0


def cache_stages(source: Array, limit: int) -> tuple[int, ...]:
    """Lengths of the cache before its full length: targets are about as long as sources [B, S], rarely longer."""
    return (source.shape[1],) if limit >= 1.5 * source.shape[1] else ()


def grown(empty_cache: Callable[[int], Any], cache: Any, length: int) -> Any:
    """The cache enlarged to `length` tokens; `empty_cache` makes an empty one of a length."""

    def enlarge(old: Array, new: Any) -> Array:
        if old.shape == new.shape:
            return old
        return jnp.pad(old, [(0, after - before) for before, after in zip(old.shape, new.shape, strict=True)])

    return jax.tree.map(enlarge, cache, jax.eval_shape(lambda: empty_cache(length)))


# Compiled once for all generators of a process: a training loop decodes with new parameters at each evaluation.
@functools.partial(jax.jit, static_argnames=("net", "settings", "constraints", "nbest", "limit"))
def _run_ar(
    params: Params,
    source: Array,
    max_lengths: Array,
    prefix: Array | None,
    lines: Array,
    seed: Array,
    *,
    net: Janus,
    settings: ArDecode,
    constraints: Constraints,
    nbest: int,
    limit: int,
) -> tuple[Hypotheses, Array]:
    """Hypotheses [B, n, L], and the decoder passes [B] until each sentence was finished."""
    encoded = net.encode(params, source)
    count = ar_hypotheses(settings, nbest)
    projected = net.project_source(params, encoded)
    step, empty_cache = ar_callbacks(net, params, encoded, projected, count, reordered=not settings.sample)
    stages = cache_stages(source, limit)

    def one_token(tokens: Array, cache: Any) -> tuple[Array, Any]:
        rows, cache = step(tokens, cache)
        return net.project(params, rows[:, 0]), cache

    shared = {
        "limit": limit,
        "specials": net.specials,
        "constraints": constraints,
        "lenpen": settings.lenpen,
        "grow_fn": functools.partial(grown, empty_cache),
        "stages": stages,
    }
    cache = empty_cache(stages[0] if stages else limit)
    if settings.sample:
        pick = sampler_of(settings, seed, lines, count)
        prefix = None if prefix is None else jnp.repeat(prefix, count, axis=0)
        samples = greedy_search(
            one_token, cache, max_lengths=jnp.repeat(max_lengths, count), prefix=prefix, pick_fn=pick, **shared
        )
        hypotheses = jax.tree.map(lambda x: x.reshape(source.shape[0], count, *x.shape[2:]), samples)
        passes = hypotheses.lengths.max(axis=1)
    else:
        hypotheses, passes = beam_search(
            one_token,
            net.reorder_cache,
            cache,
            beam=settings.beam,
            max_lengths=max_lengths,
            prefix=prefix,
            stop=settings.stop,
            **shared,
        )
        hypotheses = jax.tree.map(lambda x: x[:, :nbest], hypotheses)
    return hypotheses, passes
