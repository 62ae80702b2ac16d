"""benchmarks/accelerator.py: each part is a command that runs, and a part that fails leaves the others' figures."""

import argparse
import json

import pytest

from benchmarks import accelerator
from tests.docs.commands import accepts

ARGUMENTS = {
    "preset": "bart_base", "length": 512, "sentences": 32, "batches": "1,32", "modes": accelerator.MODES,
    "checkpoint": "/run", "source": "/lines", "lines": 3,
}  # fmt: skip


def test_its_parts_are_commands_that_the_other_benchmarks_accept(monkeypatch):
    commands = accelerator.parts(argparse.Namespace(**ARGUMENTS))
    assert set(commands) == {"train_step", "decode", "speculation"}
    for command in commands.values():
        quoted = " ".join(f"'{word}'" for word in command[1:])
        assert accepts(f"python {command[0]} {quoted}", monkeypatch), command


def test_a_part_gives_figures_or_says_why_not(tmp_path, monkeypatch, capsys):
    commands = {
        "train_step": ["-c", """print("a line"); print('{"rows": [1]}')"""],
        "broken": ["-c", "raise SystemExit('no such device')"],
    }
    monkeypatch.setattr(accelerator, "parts", lambda args: commands)
    output = tmp_path / "figures.json"
    assert accelerator.main([f"--output={output}"]) == 1
    figures = json.loads(output.read_text())
    assert (figures["train_step"]["rows"], figures["train_step"]["output"]) == ([1], ["a line"])
    assert figures["broken"] == {"error": "exit status 1", "output": ["no such device"]}
    assert "no such device" in capsys.readouterr().out
    # Without time no part begins.
    assert accelerator.main([f"--output={output}", "--minutes=0"]) == 1
    assert {part["error"] for part in json.loads(output.read_text()).values()} == {"no time was left"}


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_ended():
    code = "import time; print('begun', flush=True); time.sleep(600)"
    assert accelerator.run_part(["-c", code], 10.0) == {"error": "ended after 10 s", "output": ["begun"]}


@pytest.mark.parametrize("arguments", [["--checkpoint=run"], ["--checkpoint=no", "--source=no"]])
def test_a_model_that_is_not_there_is_named_before_any_part(arguments, capsys):
    with pytest.raises(SystemExit) as leave:
        accelerator.main(arguments)
    assert leave.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err
