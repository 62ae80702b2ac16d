"""The notebooks run from top to bottom at a tiny size, and are stored without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from janus_jax.command_line import load_config
from tests.faults.killed_runs import NO_TORCH

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A directory whose run `ar` and prepared data the notebooks share: the first that runs makes them, others resume."""
    return tmp_path_factory.mktemp("shared")


def tiny(shared):
    """Settings of configs/demo_deen.py:masks that train in seconds."""
    settings = {
        "data.prepared": shared / "prepared", "data.demo_sizes": (300, 8, 8), "data.buckets": 1, "text.vocab_size": 500,
        "model.d_model": 16, "model.ffn_dim": 16, "model.encoder_layers": 1, "model.decoder_layers": 1,
        "train.steps": 2, "train.eval_every": 2, "train.checkpoint_every": 2, "train.eval_sentences": 0,
        "optimizer.warmup_steps": 1, "objective.ar_first": 0.0,
    }  # fmt: skip
    return [f"--config.{name}={value}" for name, value in settings.items()]


def cell_of(**values):
    """The source of a parameter cell."""
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")


def run(name, parameters, monkeypatch, torch=False, last=""):
    """Runs the notebook with this parameter cell and a `last` one; returns its code cells and the text of their outputs."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the compiler takes most of the time
    if not torch:
        monkeypatch.setenv("PYTHONPATH", str(NO_TORCH))
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = parameters
    notebook.cells += [nbformat.v4.new_code_cell(last)] if last else []
    # A failure keeps the outputs too, so that the error shows the message of the cell.
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    texts = [
        output.get("text", "") or "".join(output.get("data", {}).get("text/html", ""))
        for c in cells
        for output in c.outputs
    ]
    return cells, "\n".join(texts)


@pytest.mark.parametrize("name", ["quickstart", "inspect_joint_pass", "make_it_fast", "play"])
def test_the_stored_settings_are_those_of_the_program(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    notebook = nbformat.read(f"notebooks/{name}.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    stored = {}
    exec(cell.source, stored)
    assert load_config(stored["CONFIG"], stored["SETTINGS"]).data.source == "demo"
    if "HEADS" in stored:
        assert load_config("configs/heads.py", stored["HEADS"]).train.only == "heads"


def test_quickstart_runs(shared, monkeypatch):
    cell = cell_of(
        CONFIG="configs/demo_deen.py:masks", SENTENCE="", PASSES=3, WORKDIR=f"{shared}/ar", SETTINGS=tiny(shared)
    )
    cells, text = run("quickstart", cell, monkeypatch)
    assert "| nar:passes=10 |" in text
    assert f"checkpoint  {shared / 'ar' / 'checkpoints' / '2'}" in text
    assert text.count("<p>pass ") == 3
    assert "line-through" in text  # some slots are masked again after the first pass
    assert any("image/png" in output.get("data", {}) for c in cells for output in c.outputs)


@pytest.mark.slow
def test_inspect_joint_pass_runs(shared, monkeypatch):
    cell = cell_of(CONFIG="configs/demo_deen.py:masks", EXAMPLE=3, WORKDIR=f"{shared}/ar", SETTINGS=tiny(shared))
    cells, text = run("inspect_joint_pass", cell, monkeypatch)
    kinds = [kind for c in cells for output in c.outputs for kind in output.get("data", {})]
    assert [kind for kind in kinds if kind.startswith("image/")] == ["image/svg+xml", "image/png"]
    (masked,) = re.findall(r"^NAR reads (.*)$", text, re.MULTILINE)
    rows = {name: int(count) for name, count in re.findall(r"^(\w+) +(?:ar|nar|aux) +(\d+) ", text, re.MULTILINE)}
    assert rows["nar"] == len(masked.split())
    assert rows["aux_gold"] == rows["aux_query"] == masked.count("[mask]") > 0
    means = re.findall(r"training, (kl_\w+): mean of the bars ([\d.]+), the objective ([\d.]+)$", text, re.MULTILINE)
    assert [name for name, _, _ in means] == 2 * ["kl_ar_nar", "kl_nar_aux", "kl_ar_aux"]
    assert all(abs(float(mean) - float(objective)) < 2e-5 for _, mean, objective in means)
    assert any(float(mean) > 0 for _, mean, _ in means)


@pytest.mark.slow
def test_make_it_fast_runs(shared, monkeypatch):
    settings = tiny(shared)
    heads = [one for one in settings if any(part in one for part in ("train.", "optimizer.", "buckets"))]
    cell = cell_of(
        RUN="", CONFIG="configs/demo_deen.py:masks", WORKDIR=str(shared), SETTINGS=settings, HEADS=heads, SENTENCES=2,
        ROUNDS=2,
    )  # fmt: skip
    _, text = run("make_it_fast", cell, monkeypatch)
    assert re.search(r"parameters of the model: as they were; \d+ are new: .*draft_heads", text)
    row = r"^(greedy|drafts, \w+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+|-)  (.+)$"
    rows = {found[0]: found[1:] for found in re.findall(row, text, re.MULTILINE)}
    assert list(rows) == ["greedy", "drafts, auto", "drafts, always"]
    assert all(float(milliseconds) > 0 for milliseconds, *_ in rows.values())
    assert rows["greedy"][1] == "1.00"
    assert rows["drafts, always"][3] != "-"  # drafts were made
    assert all(same == "2 of 2" or "are ties" in same for *_, same in rows.values())


@pytest.mark.slow
def test_play_runs(shared, monkeypatch):
    pytest.importorskip("gradio", reason="requirements-play.txt is not installed")
    cell = cell_of(
        CHECKPOINT="", CONFIG="configs/demo_deen.py:masks", WORKDIR=f"{shared}/ar", SETTINGS=tiny(shared),
        EXAMPLES=["3 Stunden"],
    )  # fmt: skip
    # The page is open after "run all".
    last = "import urllib.request\n\nprint('page', urllib.request.urlopen(address).status)"
    cells, text = run("play", cell, monkeypatch, last=last)
    assert text.endswith("page 200\n")
    assert re.search(r"^http://127\.0\.0\.1:\d+/$", text, re.MULTILINE)
    assert re.findall(r"^(\w+): .*\(\d+ decoder passes\)$", text, re.MULTILINE) == ["ar", "nar"]
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for c in cells for output in c.outputs)


@pytest.mark.slow
def test_bart_to_nar_runs(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings = {
        "data.source": "demo", "data.demo_sizes": (300, 8, 8), "data.buckets": 1, "data.max_source_length": 64,
        "data.max_target_length": 64, "data.tokens_per_batch": 1024, "train.steps": 3, "train.eval_every": 3,
        "train.checkpoint_every": 3, "train.eval_sentences": 0, "optimizer.warmup_steps": 1,
    }  # fmt: skip
    cell = [
        'BART = ""', f"WORKDIR = {str(tmp_path)!r}", 'SENTENCES = ["3 Stunden", "Montag"]',
        "SIZES = {'d_model': 16, 'ffn_dim': 32, 'heads': 2, 'layers': 1, 'vocab_size': 400}",
        f"SETTINGS = {[f'--config.{name}={value}' for name, value in settings.items()]}",
    ]  # fmt: skip
    _, text = run("bart_to_nar", "\n".join(cell), monkeypatch, torch=True)
    assert "ar: PyTorch gives the same text" in text
    assert "nar: PyTorch gives the same text" in text
    assert "BartForConditionalGeneration" in text
    assert "embed_length" in text  # the tensor that the import created
