"""Parity with the released arrays: see golden_check.py. One of the files is part of the repository."""

from pathlib import Path

import numpy as np
import pytest

from tests import golden_check
from tests.golden_check import Golden, check, check_forward, main

COMMITTED = Path(__file__).parent / "golden" / "golden_mt_1.npz"


@pytest.mark.parametrize("name", ["golden_mt_1", "golden_mt_3", "golden_bart_1"])
def test_every_array_is_within_its_tolerance(name, golden):
    lines = check(golden(name))
    assert len(lines) > 100
    assert [line for line in lines if not line.passed] == []


def test_remask_counts_are_the_released_ones(golden):
    assert [line for line in check(golden("remask_counts")) if not line.passed] == []


def test_a_changed_parameter_fails_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(golden_check, "check", lambda path: [*check_forward(Golden(dict(np.load(path))))])
    assert main([str(COMMITTED)]) == 0
    arrays = dict(np.load(COMMITTED))
    arrays["param/decoder.layers.1.fc1.bias"] = arrays["param/decoder.layers.1.fc1.bias"] + 0.01
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main([str(tmp_path / "changed.npz")]) == 1
