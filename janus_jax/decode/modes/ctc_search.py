"""The CTC half bound to its searches: one pass of rows, then the best path or a prefix beam search.

Legend: B sentences of a batch, S padded source length, R CTC rows, k tokens that a row offers, K hypotheses, L longest
hypothesis, D model width.
"""

import functools

import jax

from janus_jax.decode.modes.source_rows import offered_tokens
from janus_jax.decode.search.prefix_beam import Emissions, collapse, prefix_beam_search
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Hypotheses, Params


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
    offered, log_probs, blank = offered_tokens(net, params, rows, 1 if beam == 1 else tokens, blank=True)
    emitted = Emissions(offered, log_probs, blank - blank_penalty, real)
    if beam == 1:
        return encoded, collapse(emitted, limit=limit, specials=net.specials)
    return encoded, prefix_beam_search(emitted, beam=beam, limit=limit, specials=net.specials)
