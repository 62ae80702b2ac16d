"""Folders of GLGE predictions: their checks, their scores, and the command that makes them from the benchmark's folders."""

import json
import shutil

import pytest

from janus_jax.config import DataConfig
from janus_jax.data.sample import write_sample
from janus_jax.evaluate import glge
from janus_jax.evaluate.__main__ import main
from tests.docs.commands import TINY
from tests.docs.pages import text_of
from tests.launchers import launch, needs_environment

# Of each task: its number of metrics.
METRICS = {
    "cnndm": 3, "gigaword": 3, "xsum": 3, "msnews": 3, "squadqg": 3, "msqg": 3, "coqa": 1, "personachat": 4,
}  # fmt: skip


def benchmark(folder, tasks, splits=("dev", "test"), closed=()):
    """Folders of the benchmark with two lines each, and predictions whose second line is wrong; returns both folders."""
    data, predictions = folder / "data/easy", folder / "out"
    predictions.mkdir(parents=True)
    for task in tasks:
        place = data / f"{task}_data/org_data"
        place.mkdir(parents=True)
        for split in splits:
            (place / f"{split}.src").write_text("one text\nanother text\n")
            if split not in closed:
                (place / f"{split}.tgt").write_text("the first one here now\na second line of it\n")
            (predictions / f"{task}.easy.{split}").write_text("the first one here now\nwrong words only\n")
    return data, predictions


@pytest.mark.usefixtures("captions")
def test_all_tasks_are_scored(tmp_path, capsys):
    data, predictions = benchmark(tmp_path, glge.TASKS, closed=("test",))
    assert main([f"--glge={data}", f"--predictions={predictions}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["dev"]  # test has no targets
    column = found["dev"][str(predictions)]
    assert {task: len(scores) for task, scores in column["tasks"].items()} == METRICS
    for task in ("gigaword", "xsum", "msnews", "coqa"):  # one of two lines is right
        assert list(column["tasks"][task].values()) == pytest.approx([50.0] * METRICS[task])
    assert column["overall"] is None  # without METEOR
    assert main([f"--glge={data}", f"--predictions={predictions}"]) == 0
    printed = capsys.readouterr().out
    assert f"{predictions}/coqa.easy.test: 2 predictions, complete; no targets to score them" in printed
    assert "| gigaword | rouge1/rouge2/rougeL | 50.0/50.0/50.0 | - | - | - | - | - |" in printed
    assert "| coqa | f1 | 50.0 | 15.7 | 68.6 | 73.0 | - | - |" in printed


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="there is no Java")
def test_with_java_there_is_an_overall_score(tmp_path, capsys):
    pytest.importorskip("pycocoevalcap", reason="requirements-glge.txt is not installed")
    data, predictions = benchmark(tmp_path, glge.TASKS, splits=("dev",))
    assert main([f"--glge={data}", f"--predictions={predictions}", "--json"]) == 0
    column = json.loads(capsys.readouterr().out)["dev"][str(predictions)]
    means = [sum(scores.values()) / len(scores) for scores in column["tasks"].values()]
    assert column["overall"] == pytest.approx(sum(means) / 8)


def test_columns_are_folders_and_missing_tasks_leave_no_overall_score(tmp_path, capsys):
    data, predictions = benchmark(tmp_path, ["xsum", "coqa"], splits=("dev",))
    better = shutil.copytree(predictions, tmp_path / "better")
    shutil.copy(data / "xsum_data/org_data/dev.tgt", better / "xsum.easy.dev")
    (better / "coqa.easy.dev").unlink()
    (better / "notes.txt").write_text("not a prediction\n")
    assert main([f"--glge={data}", f"--predictions={predictions}", f"--predictions={better}", "--clean"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("dev, clean rules\n")
    assert "| xsum | rouge1/rouge2/rougeL | 50.0/50.0/50.0 | 100.0/100.0/100.0 |\n" in printed
    assert "| coqa | f1 | 50.0 | - |\n| overall | mean | - | - |\n" in printed
    assert "BART" not in printed  # published scores follow the strict rules


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data, out: (out / "xsum.easy.dev").write_text("one\n"), "xsum.easy.dev has 1 lines but"),
        (lambda data, out: (data / "xsum_data/org_data/dev.tgt").write_text("a\n\nb\n"), "dev.tgt has 3 lines but"),
        (lambda data, out: (data / "xsum_data/org_data/dev.src").unlink(), "dev.src: No such file or directory"),
        (lambda data, out: shutil.rmtree(out), "out: no such folder"),
        (lambda data, out: (out / "xsum.easy.dev").rename(out / "xsum.hard.dev"), "no predictions of version 'easy'"),
        (lambda data, out: data.rename(data.with_name("medium+")), "easy: no such folder"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, spoil, message):
    data, predictions = benchmark(tmp_path, ["xsum"], splits=("dev",))
    spoil(data, predictions)
    assert main([f"--glge={data}", f"--predictions={predictions}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--glge=x"], ["--predictions=x"], ["--glge=x", "--predictions=y", "--task=xsum"]]
)
def test_flags_that_do_not_fit_together(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "glge" in capsys.readouterr().err


def test_the_page_has_the_published_scores():
    table = text_of("glge.md")
    for model, scores in glge.PUBLISHED.items():
        tasks = " | ".join(
            scores.get(name, "-") for name in ("overall", "cnndm", "xsum", "squadqg", "coqa", "personachat")
        )
        assert f"| {model} | {tasks} |" in table


def tiny_folders(folder, tasks):
    """Folders of the benchmark, made of the sample text."""
    names = {"train": f"{folder}/text/train", "valid": f"{folder}/text/dev", "test": f"{folder}/text/test"}
    write_sample(DataConfig(source="parallel", demo_sizes=(200, 12, 8), **names))
    for path in sorted((folder / "text").iterdir()):
        path.rename(path.with_suffix(".src" if path.suffix == ".de" else ".tgt"))
    for task in tasks:
        shutil.copytree(folder / "text", folder / f"easy/{task}_data/org_data")
        (folder / f"easy/{task}_data/org_data/test.tgt").unlink()  # not public
    return folder / "easy"


@needs_environment("requirements-glge.txt")
@pytest.mark.slow
@pytest.mark.parametrize("tasks", [["gigaword"], list(glge.TASKS)])
def test_one_command_trains_decodes_and_scores_the_tasks(tmp_path, tasks):
    data, out = tiny_folders(tmp_path, tasks), tmp_path / "out"
    run = launch("glge.sh", data, "scratch", out, *TINY)
    assert run.returncode == 0, run.stderr
    absent = set(glge.TASKS) - set(tasks)
    assert run.stdout.count("skipped: ") == len(absent)
    for task in tasks:
        for mode in ("ar", "nar"):
            for split, count in (("dev", 12), ("test", 8)):
                assert (out / mode / f"{task}.easy.{split}").read_bytes().count(b"\n") == count
    table = (out / "scores.md").read_text()
    assert run.stdout.endswith(table)
    assert table.count("| gigaword | rouge1/rouge2/rougeL |") == 1
    assert f"{out}/nar/gigaword.easy.test: 8 predictions, complete" in table

    if len(tasks) == 1:  # processes take seconds to start
        return
    # A second call does only what is missing.
    kept, lost = out / "ar/gigaword.easy.dev", out / "nar/gigaword.easy.dev"
    text, before = lost.read_text(), kept.stat().st_mtime_ns
    lost.unlink()
    again = launch("glge.sh", data, "scratch", out, *TINY)
    assert again.returncode == 0, again.stderr
    assert lost.read_text() == text
    assert kept.stat().st_mtime_ns == before
    assert (out / "scores.md").read_text() == table


@pytest.mark.skipif(shutil.which("bash") is None, reason="the launcher is a bash script")
def test_a_wrong_call_is_an_error_before_any_work(tmp_path):
    data = tiny_folders(tmp_path, ["xsum"])
    for arguments, message in (
        ([data, "scratch"], "give the benchmark's folder, a checkpoint"),
        ([data, "scratch", tmp_path / "out", "steps=3"], "steps=3: give --config.key=value"),
        ([tmp_path / "text", "scratch", tmp_path / "out"], "text: no folder TASK_data/org_data"),
    ):
        run = launch("glge.sh", *arguments)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr
    (data / "xsum_data/org_data/dev.tgt").unlink()
    run = launch("glge.sh", data, "scratch", tmp_path / "out")
    assert (run.returncode, "dev.tgt is missing" in run.stderr) == (2, True), run.stderr
    assert not (tmp_path / "out").exists()
