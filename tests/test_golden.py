"""Parity with the released arrays: see golden_check.py."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden_check import check, main

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="released arrays are not at hand")


@needs_golden
@pytest.mark.parametrize("name", ["golden_mt_1", "golden_mt_3", "golden_bart_1"])
def test_every_array_is_within_its_tolerance(name):
    lines = check(GOLDEN / f"{name}.npz")
    assert len(lines) > 100
    assert [line for line in lines if not line.passed] == []


@needs_golden
def test_remask_counts_are_the_released_ones():
    assert [line for line in check(GOLDEN / "remask_counts.npz") if not line.passed] == []


@needs_golden
def test_a_changed_parameter_fails_the_check(tmp_path):
    arrays = dict(np.load(GOLDEN / "golden_mt_3.npz"))
    arrays["param/decoder.layers.1.fc1.bias"] = arrays["param/decoder.layers.1.fc1.bias"] + 0.01
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main([str(tmp_path / "changed.npz")]) == 1
