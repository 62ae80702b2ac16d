"""The commands of the pages, chain "pytorch": import of a BART, exports, and decoding of them elsewhere."""

import json

import pytest

from janus_jax import checkpoint
from janus_jax.metrics import evaluations
from tests.docs.commands import run_chain


@pytest.mark.slow
def test_commands_run(bart_desk, monkeypatch, capsys):
    pytest.importorskip("ctranslate2")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    run_chain("pytorch", bart_desk, monkeypatch)
    # Two lists of transformers and a line of CTranslate2. The output of so small a model may be only spaces.
    assert capsys.readouterr().out.count("\n") >= 3
    for name in ("mine", "mine_ar", "mine_fairseq", "mine_safetensors", "frozen", "frozen_ar", "shared"):
        assert any((bart_desk / "exports" / name).iterdir()), name
    # The scores in the card are those of the files that the commands wrote.
    card = huggingface_hub.ModelCard.load(bart_desk / "exports/shared/README.md")
    scores = {(result.dataset_split, result.metric_name): result.metric_value for result in card.data.eval_results}
    (first, second), evaluation = (
        json.loads((bart_desk / "test.json").read_text()),
        evaluations(bart_desk / "runs/mine_bart"),
    )
    assert scores["test", "BLEU (ar:beam=4)"] == first["bleu"]
    assert scores["test", "chrF (nar:passes=4)"] == second["chrf"]
    loaded = checkpoint.load(bart_desk / "runs/mine_bart")
    assert scores["validation", "loss"] == evaluation[loaded.step]["valid/loss"]
    assert card.data.license == "cc-by-4.0"
    assert loaded.about["data"] in card.text
