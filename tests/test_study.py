"""The cells of the study, its result files and its tables, with a run of one small cell."""

import dataclasses
import json

import pytest

from benchmarks import study, study_report
from benchmarks.study_cells import CELLS
from janus_jax import config as config_lib
from janus_jax.data import demo, prepare
from janus_jax.evaluate import parse_setting
from tests.train import runs

SETTINGS = ("ar:beam=5", "ar:beam=1", "nar:passes=1,length_beam=3")  # of the tiny run


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_its_changes_and_decoding_settings(name):
    config = study.config_of(CELLS[name], seed=3)
    assert (config.train.seed, config.data.seed) == (3, 3)
    settings = dict(config_lib.leaves(config))
    assert {key: settings[key] for key in CELLS[name].changes} == CELLS[name].changes
    settings = study.decodings(config.objective.name)
    assert settings
    assert all(parse_setting(setting)["mode"] for setting in settings)


def test_cells_differ():
    settings = [
        (
            json.dumps(study.changed_settings(study.config_of(cell, 0)), sort_keys=True),
            (cell.start, cell.distilled_by, cell.distilled_with, cell.readers),
        )
        for cell in CELLS.values()
    ]
    assert len(set(settings)) == len(settings)


def finished(workdir, steps):
    """Makes what looks like the checkpoint of a finished run."""
    assets = workdir / "checkpoints" / str(steps) / "assets"
    assets.mkdir(parents=True)
    (assets / "config").touch()


def test_a_cell_trains_first_what_it_starts_from_and_who_made_its_targets(tmp_path, monkeypatch):
    calls = []

    def train(name, config, workdir, path):
        calls.append((name, config.init_from, config.data.prepared, path.name))
        finished(workdir, config.train.steps)
        return True

    def made(directory):
        calls.append(f"prepare {directory}")
        (tmp_path / directory).mkdir(parents=True)

    monkeypatch.setattr(study, "run_cell", train)
    monkeypatch.setattr(study, "prepare", lambda config: made(config.data.prepared))
    monkeypatch.setattr(study, "distill", lambda _, source, output, **__: made(output))
    monkeypatch.setattr(study.Generator, "from_checkpoint", lambda path: calls.append(f"teacher {path}"))
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert study.main(["--cell=cpu_ctc_distilled", "--cell=cpu_ctc", "--seed=1"]) == 0
    raw, distilled, start = "prepared/multi30k_ar", "prepared/multi30k_ar_by_cpu_ar", "runs/study/cpu_ar"
    assert calls == [
        f"prepare {raw}",
        ("cpu_ar", "", raw, "cpu_ar.json"),
        f"teacher {start}",
        f"prepare {distilled}",
        ("cpu_ctc_distilled", start, distilled, "cpu_ctc_distilled_seed1.json"),
        ("cpu_ctc", start, raw, "cpu_ctc_seed1.json"),
    ]


def test_result_files_belong_to_cells_with_the_same_settings():
    """The tables would otherwise show files of removed cells or of old settings."""
    paths = [path for path in study.RESULTS.glob("*.json") if path.name not in study_report.NO_CELLS]
    assert paths
    for path in paths:
        figures = json.loads(path.read_text())
        assert path == study.result_path(figures["cell"], figures["seed"])
        assert study.is_done(path, study.config_of(CELLS[figures["cell"]], figures["seed"])), path.name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and config of a tiny joint model that is trained and scored."""
    folder = tmp_path_factory.mktemp("study")
    for split, pairs in zip(("train", "val", "test"), demo.generate("de", "en", (300, 12, 6), 0), strict=True):
        for side, language in enumerate(("de", "en")):
            (folder / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    splits = {"data__train": "train", "data__valid": "val", "data__test": "test"}
    config = runs.config(
        folder / "prepared", data__source="parallel", train__steps=4, train__eval_every=4,
        **{name: str(folder / file) for name, file in splits.items()},
    )  # fmt: skip
    prepare(config, log=lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "decodings", lambda *_: SETTINGS)
        study.run_cell("janus", config, folder / "run", folder / "results" / "janus.json")
    return folder, config


@pytest.mark.slow
def test_a_finished_cell_has_a_result_file(run):
    folder, config = run
    path = folder / "results" / "janus.json"
    figures = json.loads(path.read_text())
    assert [row["setting"] for row in figures["rows"]] == list(SETTINGS)
    assert {"bleu", "chrf"} <= figures["rows"][0].keys()
    assert {"nll/ar", "nll/nar"} <= figures["validation"]["4"].keys()
    assert study.is_done(path, config)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5))
    assert not study.is_done(path, other)
    # The path of the text is not one of the cell's settings.
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, train="other/train"))
    assert study.is_done(path, elsewhere)


@pytest.mark.slow
def test_missing_scores_of_a_finished_cell_are_added(run, tmp_path, monkeypatch):
    folder, config = run
    monkeypatch.setattr(study, "decodings", lambda *_: SETTINGS)
    figures = json.loads((folder / "results" / "janus.json").read_text())
    path = tmp_path / "janus.json"
    removed = figures["rows"].pop(1)
    path.write_text(json.dumps(figures))
    study.add_scores(path, config, folder / "run")
    rows = json.loads(path.read_text())["rows"]
    assert rows == [*figures["rows"][:1], removed, *figures["rows"][1:]]


def test_a_stop_ends_the_command_before_anything_is_made_of_a_half_trained_model(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(study, "run_cell", lambda name, *_: started.append(name))  # stopped
    monkeypatch.setattr(study, "prepare", lambda _: None)
    monkeypatch.setattr(study, "distill", lambda *_, **__: pytest.fail("distilled"))
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert study.main(["--cell=cpu_ctc_distilled", "--cell=cpu_ctc", "--seed=1"]) == 1
    assert started == ["cpu_ar"]


@pytest.mark.slow
def test_a_stopped_cell_writes_no_result_file(run, tmp_path, monkeypatch, capsys):
    _, config = run
    monkeypatch.setattr(study, "train_or_stop", lambda *_: ({}, True))
    assert not study.run_cell("janus", config, tmp_path / "run", tmp_path / "janus.json")
    assert "stopped" in capsys.readouterr().out
    assert not (tmp_path / "janus.json").exists()


def test_cells_are_compared_by_paired_bootstrap(tmp_path, monkeypatch):
    references = [f"a man with {n} dogs walks along the street number {n}" for n in range(40)]
    worse = [line.replace("dogs", "cats") if n % 2 else line for n, line in enumerate(references)]
    for language, lines in (("de", references), ("en", references)):
        (tmp_path / f"test_2016_flickr.{language}").write_text("".join(f"{line}\n" for line in lines))
    steps = study.config_of(CELLS["cpu_ctc"], 0).train.steps
    for name, lines in (("cpu_ar_more", worse), ("cpu_ctc", references), ("cpu_ctc_seed1", references)):
        finished(tmp_path / name, steps)
        (tmp_path / name / "outputs").mkdir()
        (tmp_path / name / "outputs" / "ar-beam=5.txt").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "COMPARISONS", ((("cpu_ar_more", "ar:beam=5"), ("cpu_ctc", "ar:beam=5")),))
    monkeypatch.setattr(study.Generator, "from_checkpoint", lambda path: None)
    assert study.main(["--compare", f"--workdir={tmp_path}", f"--data={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "results" / "bootstrap.json").read_text())["comparisons"]
    assert [(row["first"][0], row["second"][0]) for row in rows] == [
        ("cpu_ar_more", "cpu_ctc"), ("cpu_ar_more", "cpu_ctc_seed1")
    ]  # fmt: skip
    assert rows[0]["bleu_second"] == pytest.approx(100.0)
    assert rows[0]["bleu_first"] < 95
    assert rows[0]["p_value"] < 0.01
    assert rows[0]["interval_first"] > 0


@pytest.mark.slow
def test_steps_are_timed_phase_by_phase(run):
    _, config = run
    late = dataclasses.replace(config, objective=dataclasses.replace(config.objective, ar_first=0.5))
    phases = study_report.step_seconds({"janus": late}, steps=1)["cells"]["janus"]
    assert [(phase["terms"][0], len(phase["terms"]), phase["steps"]) for phase in phases] == [
        ("ar", 1, 3),
        ("ar", 7, 1),
    ]
    assert all(phase["seconds"] > 0 for phase in phases)


@pytest.mark.slow
def test_tables_and_plot(run, tmp_path, monkeypatch):
    folder, _ = run
    cells = study_report.load(folder / "results")
    phases = [{"terms": ["ar"], "steps": 20, "seconds": 0.5}, {"terms": ["ar", "nar"], "steps": 40, "seconds": 2.0}]
    table = study_report.table(cells, [{"cells": {"janus": phases}}]).splitlines()
    assert len(table) == 3
    assert table[2].split("|")[-2].strip() == "90"
    assert table[2].startswith("| `janus` |")
    assert len({line.count("|") for line in table}) == 1
    bleu = {row["setting"]: row["bleu"] for row in cells[0]["rows"]}
    assert table[2].split("|")[2].strip().startswith(f"{bleu['ar:beam=5']:.1f} /")
    study_report.plot(cells, tmp_path / "a.svg")
    study_report.plot(cells, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "janus: joint, as released" in (tmp_path / "a.svg").read_text()
    others = [dict(cells[0], cell=name) for name in ("ctc", "janus_ctc", "cpu_ctc")]
    study_report.plot([*cells, *others], tmp_path / "a.svg")
    named = (tmp_path / "a.svg").read_text()
    assert "CTC alone" in named
    assert "janus_ctc" not in named
    assert "cpu_ctc" not in named
    monkeypatch.setattr(study_report, "COLUMNS", (("AR", "ar:beam=1"), ("NAR", "nar:passes=1"), ("CTC", "ctc:beam=1")))
    timed = {"janus": (folder / "run", ("ar:beam=1", "nar:passes=1"))}
    figures = study_report.speed(timed, (f"{folder}/test.de", f"{folder}/test.en"), sentences=6, runs=1)
    calls = [(row["setting"], row["batch"]) for row in figures["rows"]]
    assert calls == [("ar:beam=1", 1), ("ar:beam=1", 32), ("nar:passes=1", 1), ("nar:passes=1", 32)]
    assert all(row["sentences_per_second"] > 0 for row in figures["rows"])
    assert study_report.speed_table(figures).count("\n") == 3
    for file in ("c.svg", "d.svg"):
        study_report.plot_speed(cells, figures, tmp_path / file)
    assert (tmp_path / "c.svg").read_bytes() == (tmp_path / "d.svg").read_bytes()
    assert "sentences/s, batch 32" in (tmp_path / "c.svg").read_text()
