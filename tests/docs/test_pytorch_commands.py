"""The commands of the pages, chain "pytorch": import of a BART, exports, and decoding of them elsewhere."""

import pytest

from tests.docs.commands import run_chain


def test_commands_run(bart_desk, monkeypatch, capsys):
    pytest.importorskip("ctranslate2")
    run_chain("pytorch", bart_desk, monkeypatch)
    # Two lists of transformers and a line of CTranslate2. The output of so small a model may be only spaces.
    assert capsys.readouterr().out.count("\n") >= 3
    for name in ("mine", "mine_ar", "mine_fairseq", "mine_safetensors", "frozen", "frozen_ar"):
        assert any((bart_desk / "exports" / name).iterdir()), name
