"""The commands of the pages, chain "drafts": CTC, speculation, infilling, the Python interface."""

import re

import pytest

from tests.docs.commands import run_chain


@pytest.mark.slow
def test_commands_run(desk, monkeypatch, capsys):
    run_chain("drafts", desk, monkeypatch)
    # The Python example prints a text with its score.
    assert re.search(r"-?\d+\.\d+$", capsys.readouterr().out, re.MULTILINE)
    # Text outside the gaps stays the same.
    assert (desk / "filled.tsv").read_text().splitlines()[2].startswith("3 ")
