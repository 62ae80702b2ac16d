"""The commands of the pages, chain "speculation": costs of drafts and equality of outputs."""

from tests.docs.commands import run_chain


def test_commands_run(desk, monkeypatch):
    assert len(run_chain("speculation", desk, monkeypatch)) == 1
