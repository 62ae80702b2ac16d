"""The commands of the pages, chain "training": tokenizers, resuming, dry runs, averages, distillation."""

import pytest

from tests.docs.commands import run_chain


@pytest.mark.slow
def test_commands_run(desk, monkeypatch):
    run_chain("training", desk, monkeypatch)
    assert (desk / "runs/mine_average").is_dir()
    assert (desk / "prepared/mine_distilled/report.json").is_file()
    assert not (desk / "runs/mine_dry").exists(), "a dry run writes nothing"
