"""The cells of benchmarks/transfer.py, its intervals, tables and figure, with a run of one small cell."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import study, transfer
from janus_jax.config import leaves
from janus_jax.data import prepare
from janus_jax.data.sample import write_sample
from janus_jax.decode import trained_modes
from janus_jax.evaluate import parse_setting
from janus_jax.evaluate.scores import rouge
from janus_jax.metrics import read_metrics
from tests.train import runs


def test_a_cell_from_scratch_differs_from_its_pretrained_one_in_the_start_only(tmp_path):
    for cell in (cell for cell in transfer.CELLS if not cell.endswith("_scratch")):
        pair = [transfer.config_of(f"{cell}{start}", 3, "runs/x", tmp_path) for start in ("", "_scratch")]
        pretrained, scratch = (dict(leaves(config)) for config in pair)
        differ = {name: (value, scratch[name]) for name, value in pretrained.items() if value != scratch[name]}
        assert differ == {"init_from": ("runs/x", ""), "text.model": ("", "runs/x")}
        assert (pretrained["train.seed"], pretrained["data.seed"]) == (3, 3)
        assert pretrained["data.train"] == str(tmp_path / cell.split("_")[0] / "train.tsv")
        # Nothing that decides when the run ends reads the pairs that are scored.
        assert pretrained["data.valid"] == ""
        assert pretrained["train.patience"]
        modes = {parse_setting(setting)["mode"] for setting in transfer.DECODINGS[pair[0].objective.name]}
        assert modes == set(trained_modes(pair[0])) - {"speculative", "infill"}


def test_rouge_has_the_means_of_the_command_and_an_interval_of_the_pairs():
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcd"), 6)) for _ in range(300)]
    hypotheses = [line if rng.random() < 0.7 else "zzz" for line in references]
    figures, expected = transfer.rouge(hypotheses, references), rouge(hypotheses, references)
    share = expected["rouge1"] / 100
    for name in transfer.ROUGE:
        assert figures[name] == pytest.approx(expected[name], abs=0.5)  # the median of the samples
    # Each pair has 0 or 100, so that the mean is a share p of n pairs with the standard deviation sqrt(p (1 - p) / n).
    width = figures["rouge1_high"] - figures["rouge1_low"]
    assert width == pytest.approx(2 * 196 * np.sqrt(share * (1 - share) / 300), rel=0.15)
    assert transfer.rouge(hypotheses, references) == figures


def test_sources_are_found_in_the_text_of_the_pretraining(tmp_path, monkeypatch, capsys):
    words = [str(n) for n in range(40)]
    known, new, short = " ".join(words[:20]), " ".join(words[20:]), "10 11 12"
    pairs = {"train": [(known, "x"), (new, "y"), (short, "z")], "valid": [(new, "x"), (known, "z"), (known, "w")]}
    for task in transfer.TASKS:
        (tmp_path / task).mkdir()
        for split, lines in pairs.items():
            (tmp_path / task / f"{split}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in lines))
    # Without the middle of a source it does not count, wherever its start stands.
    (tmp_path / "text").write_text(f"a {known} b\n{' '.join(words[20:29])}\n")
    monkeypatch.setattr(transfer, "OVERLAP", tmp_path / "overlap.json")
    assert transfer.main([f"--overlap={tmp_path / 'text'}", f"--data={tmp_path}"]) == 0
    expected = {"train": {"pairs": 3, "seen": 1}, "valid": {"pairs": 3, "seen": 2, "targets of train": 2}}
    splits = json.loads((tmp_path / "overlap.json").read_text())["splits"]
    assert splits == {f"{task}/{split}": counts for task in transfer.TASKS for split, counts in expected.items()}
    assert json.loads(capsys.readouterr().out) == splits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a tiny model that stopped early, trained and scored by the command; its config and folder."""
    folder = tmp_path_factory.mktemp("transfer")
    data = {split: str(folder / f"{split}.tsv") for split in ("train", "valid", "test")}
    config = runs.config(
        folder / "prepared", data__source="tsv", data__train=data["train"], data__valid="", data__test=data["test"],
        data__hold_out=8, data__demo_sizes=(100, 4, 4), model__dag_ratio=2.0, model__max_positions=128,
        objective__name="janus_dag", train__steps=8, train__patience=1, train__eval_every=1, train__checkpoint_every=1,
        train__log_every=1, train__eval_sentences=2, train__keep_last=1, optimizer__warmup_steps=1, optimizer__learning_rate=1.0,
    )  # fmt: skip
    write_sample(dataclasses.replace(config.data, valid=data["valid"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "RESULTS", folder / "results")
        patch.setattr(transfer, "config_of", lambda *_: config)
        patch.setattr(transfer, "prepare", lambda config: prepare(config, log=lambda _: None))
        assert transfer.main(["--cell=qg_dag", "--seed=0", f"--workdir={folder / 'runs'}"]) == 0
    return folder, config


@pytest.mark.slow
def test_a_finished_cell_is_scored_at_its_best_step_and_is_not_run_again(finished, monkeypatch, capsys):
    folder, config = finished
    figures = json.loads((folder / "results/qg_dag_seed0.json").read_text())
    assert [row["setting"] for row in figures["rows"]] == list(transfer.DECODINGS["janus_dag"])
    records = {r["step"]: r for r in read_metrics(folder / "runs/qg_dag_seed0/metrics.jsonl") if "valid/loss" in r}
    assert figures["last_step"] == max(records) < config.train.steps
    assert records[figures["best_step"]]["valid/loss"] == min(r["valid/loss"] for r in records.values())
    assert figures["start"] is None  # random parameters
    assert {"bleu_ar", "bleu_dag"} <= figures["validation"][str(figures["best_step"])].keys()
    assert figures["pairs"] == len((folder / "test.tsv").read_text().splitlines())
    assert (
        len((folder / "runs/qg_dag_seed0/outputs/dag-search=lookahead.txt").read_text().splitlines())
        == figures["pairs"]
    )
    monkeypatch.setattr(transfer, "RESULTS", folder / "results")
    monkeypatch.setattr(transfer, "config_of", lambda *_: config)
    monkeypatch.setattr(transfer, "train_or_stop", lambda *_: pytest.fail("trained again"))
    assert transfer.main(["--cell=qg_dag", "--seed=0", f"--workdir={folder / 'runs'}"]) == 0
    assert transfer.main(["--list", "--cell=qg_dag", "--cell=headline", "--seed=0"]) == 0
    assert capsys.readouterr().out.splitlines() == ["qg_dag_seed0: done", "headline_seed0: missing"]


@pytest.mark.slow
def test_a_stopped_cell_writes_no_result_file(finished, tmp_path, monkeypatch, capsys):
    _, config = finished
    monkeypatch.setattr(transfer, "train_or_stop", lambda config, workdir: ({}, True))
    assert not transfer.run_cell("qg_dag", config, tmp_path / "run", tmp_path / "qg.json")
    assert "stopped" in capsys.readouterr().out
    assert not (tmp_path / "qg.json").exists()


@pytest.mark.slow
def test_the_tables_have_both_starts_and_seeds_side_by_side(finished, tmp_path):
    folder, _ = finished
    cells = {}
    for cell, best in (("qg_dag", 9.0), ("qg_dag_scratch", 4.0)):
        figures = json.loads((folder / "results/qg_dag_seed0.json").read_text())
        for row in figures["rows"]:
            row.update(rouge1=best, rouge2=1.0, rougeL=best - 1, rougeL_low=best - 2.5, rougeL_high=best)
        cells[cell] = [figures, figures]
    lines = transfer.tables(cells).splitlines()
    assert lines[2] == "| AR beside DAG, beam 5 | 9.0 / 1.0 / 8.0, 9.0 / 1.0 / 8.0 | 4.0 / 1.0 / 3.0, 4.0 / 1.0 / 3.0 |"
    assert "95% intervals of ROUGE-L are at most 2.5 wide" in lines[-1]
    assert not any("CTC" in line for line in lines)
    assert transfer.tables(study.load_cells(tmp_path, transfer.CELLS)) == ""
    transfer.plot(cells, tmp_path / "a.svg")
    assert "DAG, from scratch" in (tmp_path / "a.svg").read_text()


def test_result_files_belong_to_cells_with_the_same_settings():
    """The tables would otherwise show files of old settings."""
    paths = list(transfer.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        figures = json.loads(path.read_text())
        assert path.name == f"{figures['cell']}_seed{figures['seed']}.json"
        assert study.is_done(path, transfer.config_of(figures["cell"], figures["seed"])), path.name
