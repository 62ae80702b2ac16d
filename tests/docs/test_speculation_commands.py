"""The commands of the pages, chain "speculation": what drafts cost and whether outputs are equal."""

from tests.docs.commands import run_chain


def test_commands_run(desk, monkeypatch):
    assert len(run_chain("speculation", desk, monkeypatch)) == 1
