"""Autoregressive decoding of a batch: beam search, greedy search and sampling, bound to the model and jitted.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, N rows of a search, P prefix tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import DecodeConfig
from janus_jax.decode.beam import beam_search
from janus_jax.decode.greedy import greedy_search, sampler
from janus_jax.decode.loop import Constraints
from janus_jax.decode.request import Found, Request, rows_per_sentence
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


def decode_ar(request: Request) -> Found:
    """Beam search, greedy search when the beam is 1, or sampling."""
    limit, max_lengths = ar_limits(request)
    found = _run_ar(
        request.params,
        request.source,
        max_lengths,
        request.prefix,
        np.arange(len(request.source), dtype=np.int32) if request.lines is None else request.lines,
        request.decode.seed,
        net=request.net,
        decode=request.static,
        limit=limit,
    )
    return Found(found, {"passes": found.lengths[:, 0]})


def ar_limits(request: Request) -> tuple[int, np.ndarray]:
    """L, and the most tokens [B] of each sentence, eos counted; 0 for empty rows."""
    decode, source = request.decode, request.source
    cap = request.max_target_length - 1  # bos is not counted
    given = 0 if request.prefix is None else (request.prefix != request.net.specials.pad).sum(axis=1)
    inner = np.maximum((source != request.net.specials.pad).sum(axis=1) - 2, 0)
    allowed = (decode.max_length_a * inner + decode.max_length_b).astype(np.int32) + 1
    allowed = np.minimum(np.maximum(allowed, given + 1), cap)
    limit = int(decode.max_length_a * (source.shape[1] - 2) + decode.max_length_b) + 1
    limit = min(max(limit, 0 if request.prefix is None else request.prefix.shape[1] + 1), cap)
    return limit, np.where(inner > 0, allowed, 0).astype(np.int32)


# Jitted here and not per generator: a training loop that decodes with ever new parameters compiles once.
@functools.partial(jax.jit, static_argnames=("net", "decode", "limit"))
def _run_ar(
    params: Params,
    source: Array,
    max_lengths: Array,
    prefix: Array | None,
    lines: Array,
    seed: Array,
    *,
    net: Janus,
    decode: DecodeConfig,
    limit: int,
) -> Hypotheses:
    encoded = net.encode(params, source)
    rows = rows_per_sentence(decode)
    projected = net.project_source(params, encoded)
    # Targets are about as long as sources: first a cache for that, the whole only where it is needed.
    stages = (source.shape[1],) if limit >= 1.5 * source.shape[1] else ()
    step, empty_cache = ar_callbacks(net, params, encoded, projected, rows)

    def grow(cache: Any, length: int) -> Any:
        def enlarge(have: Array, want: Any) -> Array:
            return jnp.pad(have, [(0, w - h) for h, w in zip(have.shape, want.shape, strict=True)])

        return jax.tree.map(enlarge, cache, jax.eval_shape(lambda: empty_cache(length)))

    def one(tokens: Array, cache: Any) -> tuple[Array, Any]:
        logits, cache = step(tokens, cache)
        return logits[:, 0], cache

    shared = {
        "limit": limit,
        "specials": net.specials,
        "constraints": constraints_of(net, decode),
        "lenpen": decode.lenpen,
        "grow_fn": grow,
        "stages": stages,
    }
    cache = empty_cache(stages[0] if stages else limit)
    if decode.sample:
        numbers = jnp.repeat(lines, rows) * rows + jnp.tile(jnp.arange(rows), source.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        pick = sampler(keys, temperature=decode.temperature, top_k=decode.top_k, top_p=decode.top_p)
        prefix = None if prefix is None else jnp.repeat(prefix, rows, axis=0)
        found = greedy_search(
            one, cache, max_lengths=jnp.repeat(max_lengths, rows), prefix=prefix, pick_fn=pick, **shared
        )
        return jax.tree.map(lambda x: x.reshape(source.shape[0], rows, *x.shape[2:]), found)
    found = beam_search(
        one,
        net.reorder_cache,
        cache,
        beam=decode.beam,
        max_lengths=max_lengths,
        prefix=prefix,
        stop="released" if decode.rules == "released" else decode.stop,
        **shared,
    )
    return jax.tree.map(lambda x: x[:, : decode.nbest], found)


def ar_callbacks(
    net: Janus, params: Params, encoded: Encoded, projected: Any, rows: int
) -> tuple[Callable[[Array, Any], tuple[Array, Any]], Callable[[int], Any]]:
    """(tokens [N, k], cache -> logits [N, k, V'], cache; length -> an empty cache for so many tokens)."""
    # With an eos start, eos stands before bos (which the first slot predicts): it goes into the cache beforehand.
    prefix = cached_tokens(net)

    def step(tokens: Array, cache: Any) -> tuple[Array, Any]:
        hidden, cache = net.ar_step(params, tokens, cache)
        return net.project(params, hidden), cache

    def empty_cache(length: int) -> Any:
        cache = net.init_cache(params, encoded, rows, length + prefix, projected)
        if prefix:
            count = encoded.states.shape[0] * rows
            cache = net.ar_step(params, jnp.full((count, 1), net.specials.eos), cache)[1]
        return cache

    return step, empty_cache


def cached_tokens(net: Janus) -> int:
    """Tokens that stand before bos in the cache."""
    return 1 if net.config.ar_start == "eos" else 0


def constraints_of(net: Janus, decode: DecodeConfig) -> Constraints:
    vocab = net.config.vocab_size
    settings = {"min_length": max(decode.min_length, 1), "no_repeat_ngram": decode.no_repeat_ngram}
    if decode.rules == "released":
        return Constraints((net.specials.pad,), vocab, **settings)
    return Constraints.usual(net.specials, vocab, **settings)
