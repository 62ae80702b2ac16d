"""The notebooks run from top to bottom at a tiny size, and are stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def parameters(workdir):
    """The source of a parameter cell whose sizes train in seconds."""
    settings = {
        "data.prepared": workdir / "prepared", "data.demo_sizes": (300, 8, 8), "data.buckets": 1, "text.vocab_size": 500,
        "model.d_model": 16, "model.ffn_dim": 16, "model.encoder_layers": 1, "model.decoder_layers": 1,
        "train.steps": 2, "train.eval_every": 2, "train.checkpoint_every": 2, "train.eval_sentences": 0,
        "optimizer.warmup_steps": 1,
    }  # fmt: skip
    return "\n".join(
        [
            'CONFIG = "configs/demo_deen.py:masks"', 'SENTENCE = ""', "PASSES = 3", f"WORKDIR = {str(workdir / 'run')!r}",
            f"SETTINGS = {[f'--config.{name}={value}' for name, value in settings.items()]}",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")


def run(name, parameters, monkeypatch):
    """Runs the notebook with this parameter cell; returns its code cells and the text of their outputs."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the compiler takes most of the time
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = parameters
    # A failure keeps the outputs too, so that the error shows the message of the cell.
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    texts = [
        output.get("text", "") or "".join(output.get("data", {}).get("text/html", ""))
        for c in cells
        for output in c.outputs
    ]
    return cells, "\n".join(texts)


def test_quickstart_runs(tmp_path, monkeypatch):
    cells, text = run("quickstart", parameters(tmp_path), monkeypatch)
    assert "| nar:passes=10 |" in text
    assert f"checkpoint  {tmp_path / 'run' / 'checkpoints' / '2'}" in text
    assert text.count("<p>pass ") == 3
    assert "line-through" in text  # some slots are masked again after the first pass
    assert any("image/png" in output.get("data", {}) for c in cells for output in c.outputs)


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
    _, text = run("bart_to_nar", "\n".join(cell), monkeypatch)
    assert "ar: PyTorch gives the same text" in text
    assert "nar: PyTorch gives the same text" in text
    assert "BartForConditionalGeneration" in text
    assert "embed_length" in text  # the tensor that the import created
