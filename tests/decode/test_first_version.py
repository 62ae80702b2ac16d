"""Checkpoints of the first version load, and every mode decodes them as the first version did."""

import dataclasses
import json
import pathlib
import tarfile

import pytest

from janus_jax.config import (
    ConfigError,
    DagDecode,
    NarDecode,
    default_config,
    from_json,
    migrate_first_version,
    resolve,
    to_json,
)
from janus_jax.decode import Generator

FILES = pathlib.Path(__file__).resolve().parents[1] / "first_version"
CASES = {
    "ar_beam5": ("janus", {"mode": "ar", "beam": 5}),
    "nar_4": ("janus", {"mode": "nar", "passes": 4, "length_beam": 3}),
    "speculative": ("janus", {"mode": "speculative", "draft": "always"}),
    "infill": ("janus", {"mode": "infill", "draft": "always"}),
    "ctc_beam4": ("janus_ctc", {"mode": "ctc", "beam": 4}),
    "ctc_best": ("janus_ctc", {"mode": "ctc", "beam": 1}),
}
# config.decode as the first version wrote it, with no value at its default.
FLAT = {
    "mode": "nar", "nbest": 2, "beam": 7, "lenpen": 0.5, "stop": "current", "rules": "sound", "max_length_a": 1.25,
    "max_length_b": 9, "min_length": 2, "no_repeat_ngram": 3, "sample": True, "temperature": 0.75, "top_k": 11, "top_p": 0.5,
    "seed": 13, "passes": 6, "length_beam": 4, "lengths": "contiguous", "mask_schedule": "cosine", "early_stop": True,
    "merge_repeats": True, "rerank": "ar", "blank_penalty": 1.5, "ctc_tokens": 8, "draft": "never", "draft_from": "nar",
    "draft_passes": 2, "draft_lengths": 3, "accept_top": 4, "accept_gap": 0.25, "batch_tokens": 512,
}  # fmt: skip
NESTED = {
    "mode": "nar", "nbest": 2, "rules": "default", "batch_tokens": 512,
    "ar": {
        "beam": 7, "lenpen": 0.5, "stop": "current", "max_length_a": 1.25, "max_length_b": 9, "min_length": 2,
        "no_repeat_ngram": 3, "sample": True, "temperature": 0.75, "top_k": 11, "top_p": 0.5, "seed": 13,
    },
    "nar": {
        "passes": 6, "length_beam": 4, "lengths": "contiguous", "mask_schedule": "cosine", "early_stop": True,
        "merge_repeats": True, "rerank": "ar",
    },
    "ctc": {"beam": 7, "tokens": 8, "blank_penalty": 1.5, "rerank": "ar"},
    "speculative": {
        "draft": "never", "draft_from": "nar", "draft_passes": 2, "draft_lengths": 3, "accept_top": 4, "accept_gap": 0.25,
    },
    "infill": {"draft": "never", "draft_passes": 2, "accept_top": 4, "accept_gap": 0.25},
}  # fmt: skip


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
        if name == "ar_beam5":  # the first version counted the tokens of the best output; the search may go on longer
            assert record["statistics"] == {"passes": len(output.tokens) + 1}
            assert output.statistics["passes"] > len(output.tokens)
        else:
            assert output.statistics == record["statistics"]
        assert output.score == pytest.approx(record["score"], abs=1e-4)


def test_each_flat_setting_has_its_place_in_a_group():
    assert migrate_first_version({"decode": FLAT})["decode"] == NESTED
    decode = from_json(json.dumps({"decode": FLAT})).decode
    assert decode == resolve({"decode": NESTED}).decode
    today = json.loads(to_json(resolve({"decode": NESTED})))["decode"]
    # The first version had no such settings; they have their defaults.
    assert today.pop("allow_untrained") is False
    assert today.pop("dag") == dataclasses.asdict(DagDecode())
    assert today["nar"].pop("revise") is NarDecode().revise
    assert today == NESTED  # no other setting of today is missing above


def test_settings_of_today_stay_as_they_are_and_unknown_ones_are_named():
    today = json.loads(to_json(resolve(default_config())))
    assert migrate_first_version(today) is today
    with pytest.raises(ConfigError, match=r"config\.decode\.beem: unknown setting"):
        from_json(json.dumps({"decode": {**FLAT, "beem": 1}}))
    with pytest.raises(ConfigError, match=r"config\.decode\.beam: unknown setting"):
        resolve({"decode": {"beam": 1}})  # only files of the first version are migrated
