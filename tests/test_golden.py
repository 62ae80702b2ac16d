"""Parity with the released arrays: see golden_check.py. One of the files is part of the repository."""

from pathlib import Path

import numpy as np
import pytest

from tests import golden_check
from tests.golden_check import Golden, check, check_forward, main

COMMITTED = Path(__file__).parent / "golden" / "golden_mt_1.npz"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"


def shared(name):
    """The path of a file of released arrays that is not part of the repository; skips the test where it is missing."""
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing: these released arrays are not part of the repository")
    return path


@pytest.mark.parametrize("name", ["golden_mt_1", "golden_mt_3", "golden_bart_1"])
def test_every_array_is_within_its_tolerance(name):
    lines = check(COMMITTED if name == COMMITTED.stem else shared(name))
    assert len(lines) > 100
    assert [line for line in lines if not line.passed] == []


def test_remask_counts_are_the_released_ones():
    assert [line for line in check(shared("remask_counts")) if not line.passed] == []


def test_a_changed_parameter_fails_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(golden_check, "check", lambda path: [*check_forward(Golden(dict(np.load(path))))])
    assert main([str(COMMITTED)]) == 0
    arrays = dict(np.load(COMMITTED))
    arrays["param/decoder.layers.1.fc1.bias"] = arrays["param/decoder.layers.1.fc1.bias"] + 0.01
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main([str(tmp_path / "changed.npz")]) == 1
