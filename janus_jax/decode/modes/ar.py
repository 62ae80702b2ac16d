"""Mode ar: beam search, greedy search or sampling."""

from janus_jax.decode.modes.autoregression import decode_ar
from janus_jax.decode.types import DecodeRequest, DecodeResult


def run(request: DecodeRequest) -> DecodeResult:
    """Beam search, greedy search if the beam is 1, or sampling."""
    return decode_ar(request, request.decode.ar, request.decode.nbest)
