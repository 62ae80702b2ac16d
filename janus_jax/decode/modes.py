"""The modes of decoding by name, speculative decoding among them.

Legend: B sentences of a batch, L longest hypothesis, T target slots, K drafts a sentence.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from janus_jax import config
from janus_jax.config import DecodeConfig
from janus_jax.decode import batches
from janus_jax.decode.ar import ar_callbacks, ar_limits, cached_tokens, constraints_of, decode_ar
from janus_jax.decode.costs import costs_by_rows
from janus_jax.decode.nar import decode_nar, fill, rules_of, run_lengths
from janus_jax.decode.request import Found, Request
from janus_jax.decode.speculative import Acceptance, Statistics, speculative_search
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params

# Rows whose arithmetic takes about as long as reading the weights once, by which speculation knows when it pays.
FREE_ROWS = {"cpu": 16, "gpu": 200, "tpu": 200}


def decode_speculative(request: Request) -> Found:
    """Greedy search by drafts of the NAR half that the AR half verifies."""
    net, params = request.net, request.params
    limit, max_lengths = ar_limits(request)
    longest = min(request.max_target_length, net.config.length_classes - 1)
    encoded, lengths = run_lengths(
        params, request.source, net=net, count=request.decode.draft_lengths, limit=longest, decode=request.static
    )
    slots = min(batches.bucket(int(np.max(lengths)) + 2, at_least=8, halves=True), longest)
    found, did = _run_speculative(
        params, encoded, lengths, max_lengths, net=net, decode=request.static, limit=limit, slots=slots
    )
    passes = did.drafts * request.decode.draft_passes + did.rounds + did.steps
    return Found(found, {"passes": passes, "rounds": did.rounds, "drafts": did.drafts, "drafted": did.drafted})


MODES: dict[config.Mode, Callable[[Request], Found]] = {
    "ar": decode_ar,
    "nar": decode_nar,
    "speculative": decode_speculative,
}

# The modes whose rows an objective trains.
TRAINED_MODES: dict[config.Objective, tuple[config.Mode, ...]] = {
    "ar": ("ar",),
    "cmlm": ("nar",),
    "janus": ("ar", "nar", "speculative"),
}


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit", "slots"))
def _run_speculative(
    params: Params,
    encoded: Encoded,
    lengths: Array,
    max_lengths: Array,
    *,
    net: Janus,
    decode: DecodeConfig,
    limit: int,
    slots: int,
) -> tuple[Hypotheses, Statistics]:
    drafts = lengths.shape[1]
    projected = net.project_source(params, encoded)
    step, empty_cache = ar_callbacks(net, params, encoded, projected, drafts)
    costs = costs_by_rows(
        lengths.size,
        slots=slots,
        # Few, since each is compiled.
        widths=(*(width for width in (4, 16) if width < slots - 1), slots - 1),
        passes=decode.draft_passes,
        row_groups=2 if net.config.ar_stream == "query" else 1,
        free_rows=FREE_ROWS.get(jax.default_backend(), 200),
    )

    # An eos that the draft puts early is for AR to judge.
    rules = replace(rules_of(decode), end_at_eos=False)

    def draft(tokens: Array, at_lengths: Array) -> Array:
        filled = fill(net, params, encoded, projected, at_lengths, tokens, decode, decode.draft_passes, slots, rules)
        return filled.tokens

    return speculative_search(
        draft,
        step,
        net.rewind_cache,
        net.reorder_cache,
        empty_cache(limit),
        lengths=lengths,
        slots=slots,
        max_lengths=max_lengths,
        limit=limit,
        specials=net.specials,
        constraints=constraints_of(net, decode),
        costs=costs,
        acceptance=Acceptance(decode.accept_top, decode.accept_gap),
        lenpen=decode.lenpen,
        cached=cached_tokens(net),
    )
