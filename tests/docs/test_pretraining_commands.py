"""The commands of the pages, chain "pretraining"."""

import pytest

from tests.docs.commands import run_chain, run_command
from tests.docs.pages import section


@pytest.mark.slow
def test_commands_run(bart_desk, monkeypatch):
    commands = [command for block in section("bart.md", "Import") for command in block.commands]
    importing = next(command for command in commands if "janus_jax.convert import" in command)
    run_command(importing, bart_desk, monkeypatch)
    run_chain("pretraining", bart_desk, monkeypatch)
    for name in ("bart_janus", "bart_tiny", "headline", "headline_scratch"):
        assert (bart_desk / "runs" / name / "metrics.jsonl").is_file(), name
