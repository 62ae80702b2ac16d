"""The commands of the pages, chain "experiments": shipped experiments and the programs behind the figures."""

import pytest

from tests.docs.commands import run_chain


@pytest.mark.slow
def test_commands_run(desk, monkeypatch):
    run_chain("experiments", desk, monkeypatch)
    assert (desk / "runs/multi30k_masks.json").is_file()
    assert (desk / "runs/iwslt14/metrics.jsonl").is_file()
