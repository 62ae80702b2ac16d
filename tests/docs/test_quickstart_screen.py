"""The commands that the quickstart shows at its end work as they stand."""

import importlib
import io
import re
import shutil
import sys

from tests.docs.commands import SMALLER, run_command
from tests.docs.pages import ROOT


def test_the_next_commands_work(desk, monkeypatch, capsys):
    script = (ROOT / "launch/quickstart.sh").read_text(encoding="utf-8")
    screen = re.search(r"^cat <<NEXT\n(.*?)^NEXT$", script, re.MULTILINE | re.DOTALL)[1]
    activate, translate, own = re.findall(r"^  (.*)$", screen, re.MULTILINE)
    assert activate == "source .venv/bin/activate"
    sentence, command = re.fullmatch(r'echo "(.*)" \| (python .*) --checkpoint=\$workdir', translate).groups()
    main = importlib.import_module(f"{command.removeprefix('python -m ')}.__main__").main
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{sentence}\n".encode())))
    assert main(["--checkpoint=runs/mine"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    # A newcomer has neither text nor prepared data.
    shutil.rmtree(desk / "my")
    shutil.rmtree(desk / "prepared")
    monkeypatch.setitem(SMALLER, "--write_sample", ["--config.data.demo_sizes=(200, 12, 8)"])
    run_command(own, desk, monkeypatch)
    assert (desk / "my/train.es").read_text(encoding="utf-8").count("\n") == 200
    assert (desk / "prepared/mine/report.json").is_file()
    for page in re.findall(r"docs/\w+\.md", screen):
        assert (ROOT / page).is_file()
