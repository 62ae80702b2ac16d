"""The commands of the pages, chain "decoding": AR, mask-predict, traces, scores."""

from tests.docs.commands import run_chain


def test_commands_run(desk, monkeypatch):
    run_chain("decoding", desk, monkeypatch)
    assert "<script>" in (desk / "trace.html").read_text(encoding="utf-8")
    assert (desk / "refinement.svg").read_text(encoding="utf-8").count(">pass ") == 4
