"""The commands of the pages, chain "finished": what starts from a finished model, and more devices."""

import pytest

from tests.docs.commands import run_chain


@pytest.mark.slow
def test_commands_run(desk, monkeypatch):
    ran = run_chain("finished", desk, monkeypatch)
    workdirs = [word.removeprefix("--workdir=") for command in ran for word in command.split() if "--workdir=" in word]
    assert workdirs
    for workdir in workdirs:
        assert (desk / workdir / "metrics.jsonl").is_file(), workdir
