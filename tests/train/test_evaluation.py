"""Sums over validation batches."""

import numpy as np
import pytest

from janus_jax.config import ObjectiveConfig, resolve
from janus_jax.objective.joint import batch_counts, batch_divisors
from janus_jax.train.evaluation import _means
from tests import tiny


def test_a_batch_in_which_nothing_counts_changes_no_mean():
    net, batch = tiny.net(ctc_ratio=0.1), tiny.batch()  # no target fits so few rows
    counts = batch_counts(batch, net.config, ObjectiveConfig(), net.specials.pad)
    divisors = batch_divisors(batch, net.config, ObjectiveConfig(), net.specials.pad)
    assert (counts["rows/ctc"], divisors["rows/ctc"]) == (0, 1)  # in training a divisor must not be 0
    assert counts["rows/ar"] == divisors["rows/ar"] > 1

    config = resolve({"objective": {"name": "ctc"}, "model": {"ctc_ratio": 2.0}})
    sums = {"sum/loss/ctc": 60.0, "sum/nll/ctc": 80.0, "weight/ctc": 40.0, "weight/rows/ctc": 40.0}
    unfit = {name: value + float(counts["ctc"]) * name.startswith("weight/") for name, value in sums.items()}
    assert _means(unfit, config) == pytest.approx({"valid/loss": 1.5, "valid/loss/ctc": 1.5, "valid/nll/ctc": 2.0})
    assert not any(_means(dict.fromkeys(sums, 0.0), config).values())
    assert np.isfinite(list(_means(dict.fromkeys(sums, 0.0), config).values())).all()
