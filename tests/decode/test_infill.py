"""Infilling equals filling the gaps left to right by AUX, in fewer passes; scores of texts in the gaps."""

from functools import partial

import jax
import numpy as np
import pytest

from janus_jax.config import DecodeConfig, InfillDecode
from janus_jax.decode import MODES, DecodeRequest
from janus_jax.types import Batch
from tests import tiny
from tests.further import further


def gaps(rows=8, seed=3):
    """Sources, and targets with masks; row 5 is empty, row 2 has no gap."""
    batch = tiny.batch(rows=rows, target=12, masked=9, seed=seed)
    source, start = np.array(batch.source), np.array(batch.target)
    for row in range(rows):
        start[row, batch.masked[row, : batch.masked_count[row]]] = 4
    start[2] = batch.target[2]
    source[5], start[5] = 1, 1
    return source, start


def model(**variant):
    net, params = tiny.model(**variant)
    return net, tiny.sharper(params, 10)


def infilled(*arguments, **inputs):
    """The result of mode infill, with NumPy arrays."""
    return tiny.with_numpy_fields(MODES["infill"].run(DecodeRequest(*arguments, **inputs)))


MOST = 10


@partial(jax.jit, static_argnames="net")
def run_aux(net, params, batch):
    rows = net.train_rows(params, net.encode(params, batch.source), batch, families=("nar", "aux"))["aux"]
    return jax.nn.log_softmax(net.project(params, rows))


def aux_log_probs(net, params, source, target, positions):
    """[M, V] log-probabilities of the AUX rows of one sentence that is whole but for them."""
    masked = np.zeros((1, MOST), np.int32)
    masked[0, : len(positions)] = positions
    batch = Batch(source[None], target[None], masked, np.asarray([len(positions)]), np.asarray([0]))
    return np.asarray(run_aux(net, params, batch))[0, : len(positions)]


def left_to_right(net, params, source, start):
    """One gap after the other by the training rows; the scores of what was chosen."""
    filled, scores = start.copy(), np.zeros(start.shape)
    for row in range(len(start)):
        positions = np.flatnonzero(start[row] == net.specials.mask).astype(np.int32)
        for rank, position in enumerate(positions):
            log_probs = aux_log_probs(net, params, source[row], np.where(filled[row] == 4, 7, filled[row]), positions)[
                rank
            ]
            allowed = log_probs.copy()
            allowed[[0, 1, 2, 4]] = -np.inf
            filled[row, position] = allowed.argmax()
            scores[row, position] = log_probs[filled[row, position]]
    return filled, scores


@pytest.mark.parametrize(
    ("variant", "settings"), [further({}, {}), ({"norm": "pre", "ar_stream": "content"}, {"draft_passes": 2})]
)
def test_infilling_is_filling_left_to_right(variant, settings):
    net, params = model(**variant)
    source, start = gaps()
    start[0] = [0, *[4] * 10, 2]  # nothing but gaps
    expected, scores = left_to_right(net, params, source, start)
    counts = (start == net.specials.mask).sum(axis=1)
    for draft in ("always", "auto", "never"):
        decode = DecodeConfig(mode="infill", infill=InfillDecode(draft=draft, **settings))
        result = infilled(net, params, source, decode, 24, start=start)
        np.testing.assert_array_equal(result.hypotheses.tokens[:, 0], expected[:, 1:])
        np.testing.assert_array_equal(result.hypotheses.lengths[:, 0], (start != 1).sum(axis=1) - 1)
        np.testing.assert_allclose(result.hypotheses.token_scores[:, 0], scores[:, 1:], atol=1e-4)
        means = scores.sum(axis=1) / np.maximum(counts, 1)
        np.testing.assert_allclose(result.hypotheses.scores[:, 0], means, atol=1e-4)
        did = result.statistics
        if draft == "never":
            np.testing.assert_array_equal(did["passes"], 1 + counts)
        if draft == "always":
            # Every sentence is done in as many rounds as it has gaps, or fewer.
            assert (did["rounds"] <= counts).all()
            assert did["rounds"].sum() < counts.sum()


def test_scores_of_a_filling_equal_those_of_the_training_rows():
    net, params = model()
    source, start = gaps()
    gold = np.where(start == net.specials.mask, np.random.default_rng(0).integers(5, tiny.VOCAB, start.shape), start)
    limit = int((start == net.specials.mask).sum(axis=1).max())
    filling = np.zeros((len(start), limit), np.int32)
    for row in range(len(start)):
        tokens = gold[row][start[row] == net.specials.mask]
        filling[row, : len(tokens)] = tokens
    result = infilled(net, params, source, DecodeConfig(mode="infill"), 24, start=start, filling=filling)
    np.testing.assert_array_equal(result.hypotheses.tokens[:, 0], gold[:, 1:])
    np.testing.assert_array_equal(result.statistics["passes"], 1)
    for row in range(len(start)):
        positions = np.flatnonzero(start[row] == net.specials.mask).astype(np.int32)
        if len(positions):
            log_probs = aux_log_probs(net, params, source[row], gold[row], positions)
            expected = log_probs[np.arange(len(positions)), gold[row, positions]]
            np.testing.assert_allclose(result.hypotheses.token_scores[row, 0][positions - 1], expected, atol=1e-4)
            assert result.hypotheses.scores[row, 0] == pytest.approx(expected.mean(), abs=1e-4)
        else:
            assert result.hypotheses.scores[row, 0] == 0.0
