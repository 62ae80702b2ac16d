"""Greedy decoding equals teacher forcing of its own output, with either ar_start."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.config import ArDecode, DecodeConfig
from janus_jax.decode import MODES, DecodeRequest
from tests import tiny


@pytest.mark.parametrize("variant", [{}, {"ar_start": "eos"}, {"ar_start": "eos", "ar_stream": "content"}])
def test_greedy_output_is_the_argmax_of_teacher_forcing(variant):
    net, params = tiny.model(**variant)
    batch = tiny.batch(rows=3)
    decode = DecodeConfig(ar=ArDecode(beam=1, max_length_a=0.0, max_length_b=9))
    result = MODES["ar"].run(DecodeRequest(net, params, np.asarray(batch.source), decode, 40))
    result = jax.device_get(result.hypotheses)
    tokens = result.tokens[:, 0]
    start = [net.specials.bos] if net.config.ar_start == "bos" else [net.specials.eos, net.specials.bos]
    inputs = np.concatenate([np.tile(start, (3, 1)), tokens[:, :-1]], axis=1)
    logp = log_softmax(np.asarray(tiny.ar_logits(net, params, batch.source, inputs))[:, len(start) - 1 :], axis=-1)
    for row, length in enumerate(result.lengths[:, 0]):
        for t in range(length):
            assert abs(logp[row, t, tokens[row, t]] - result.token_scores[row, 0, t]) < 2e-5
            allowed = logp[row, t].copy()
            allowed[
                [net.specials.bos, net.specials.pad, net.specials.mask] + ([net.specials.eos] if t == 0 else [])
            ] = -np.inf
            if t < length - 1 or tokens[row, t] != net.specials.eos or length < 10:
                assert tokens[row, t] == allowed.argmax()
