"""A test runs every command of every page, or a table has the reason why not."""

import subprocess

import pytest

from tests.docs import commands
from tests.docs.pages import ROOT, all_blocks, inline_commands

SECTIONS = [pair for chain in (commands.SHARED, *commands.CHAINS.values()) for pair in chain]
IN_CHAINS = set(SECTIONS)
SHELL = [(block, command) for block in all_blocks("bash") for command in block.commands]
OTHERS = [(block, command) for block, command in SHELL if (block.page, block.section) not in IN_CHAINS]


def test_blocks_say_their_language():
    for language in ("", "sh", "shell", "console"):
        assert not all_blocks(language), "a block of commands is `bash`, a block that nobody runs is `text`"


def test_no_section_is_run_twice():
    assert len(SECTIONS) == len(IN_CHAINS)


def test_every_chain_has_its_file():
    for name in commands.CHAINS:
        text = (ROOT / f"tests/docs/test_{name}_commands.py").read_text(encoding="utf-8")
        assert f'run_chain("{name}"' in text, name


@pytest.mark.parametrize("page", ["README.md", "index.md", "contributing.md", "reliability.md"])
def test_pages_outside_all_chains_hold_only_commands_that_cannot_run(page):
    assert any(block.page == page for block, _ in OTHERS), f"{page} has no commands: take it out of this test"


@pytest.mark.parametrize(
    ("block", "command"), OTHERS, ids=lambda value: value if isinstance(value, str) else value.page
)
def test_a_command_outside_all_chains_says_why_and_is_checked(block, command, monkeypatch):
    assert commands.not_run(command), (
        f"{block.page}, {block.section}: add the section to a chain in tests/docs/commands.py"
    )
    commands.check_without_running(command, monkeypatch)


@pytest.mark.parametrize(
    ("block", "command"),
    [(b, c) for b, c in SHELL if (b.page, b.section) in IN_CHAINS and not commands.not_run(c)],
    ids=lambda value: value if isinstance(value, str) else value.page,
)
def test_programs_accept_the_arguments_of_a_command_in_a_chain(block, command, monkeypatch):
    """Some chains run with `-m slow` only."""
    assert commands.accepts(command, monkeypatch)


def test_python_examples_are_in_chains():
    for block in all_blocks("python"):
        assert (block.page, block.section) in IN_CHAINS, f"{block.page}, {block.section}"


@pytest.mark.parametrize(("page", "command"), inline_commands(), ids=lambda value: value)
def test_a_command_in_a_sentence_stands_in_a_block_or_says_why(page, command):
    tables = commands.NOT_RUN | commands.INLINE_NOT_RUN
    known = any(line.startswith(command) for _, line in SHELL)
    assert known or any(command.startswith(start) for start in tables), f"{page}: {command}"


@pytest.mark.parametrize("start", [*commands.NOT_RUN, *commands.INLINE_NOT_RUN])
def test_no_reason_is_left_over(start):
    shown = [command for _, command in SHELL + inline_commands()]
    assert any(command.startswith(start) for command in shown), "no page has such a command"


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh", "launch/environment.sh"])
def test_scripts_that_are_not_run_parse(script):
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
