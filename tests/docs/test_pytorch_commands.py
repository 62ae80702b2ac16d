"""The commands of the pages, chain "pytorch": a BART in, exports out, and what other programs make of them."""

import pytest

from tests.docs.commands import run_chain


def test_commands_run(bart_desk, monkeypatch, capsys):
    pytest.importorskip("ctranslate2")
    run_chain("pytorch", bart_desk, monkeypatch)
    # Two lists of transformers and a line of CTranslate2; what so small a model says may well be spaces.
    assert capsys.readouterr().out.count("\n") >= 3
    for name in ("mine", "mine_ar", "mine_fairseq", "mine_safetensors"):
        assert any((bart_desk / "exports" / name).iterdir()), name
