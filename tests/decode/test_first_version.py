"""Checkpoints of the first version load, and every mode decodes them as the first version did."""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest

from janus_jax.config import ConfigError, from_json, to_json
from janus_jax.decode import Generator
from janus_jax.first_version import migrate_first_version

FILES = pathlib.Path(__file__).resolve().parents[1] / "first_version"
TIE = 1e-4  # log-probabilities that are closer than this may change places, in another order of sums
CASES = {
    "ar_beam5": ("janus", {"mode": "ar", "beam": 5}),
    "nar_4": ("janus", {"mode": "nar", "passes": 4, "length_beam": 3}),
    "speculative": ("janus", {"mode": "speculative", "draft": "always"}),
    "infill": ("janus", {"mode": "infill", "draft": "always"}),
    "ctc_beam4": ("janus_ctc", {"mode": "ctc", "beam": 4}),
    "ctc_best": ("janus_ctc", {"mode": "ctc", "beam": 1}),
}


@pytest.fixture(scope="module")
def generators(tmp_path_factory):
    loaded = {}
    for name in ("janus", "janus_ctc"):
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(FILES / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        loaded[name] = Generator.from_checkpoint(folder)
    return loaded


def records(name):
    return [json.loads(line) for line in (FILES / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_every_mode_decodes_as_before(generators, name):
    checkpoint, settings = CASES[name]
    expected = records(name)
    inputs = {"targets": [record["target"] for record in records("gaps")]} if name == "infill" else {}
    outputs = generators[checkpoint].generate([record["source"] for record in expected], **inputs, **settings)
    assert len(outputs) == len(expected) > 0
    for output, record in zip(outputs, expected, strict=True):
        assert output.tokens == record["tokens"]
        assert output.text == record["text"]
        assert output.statistics == record["statistics"]
        assert output.score == pytest.approx(record["score"], abs=1e-4)
