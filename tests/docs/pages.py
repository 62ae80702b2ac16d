"""The pages as text: sections, blocks of code, commands."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": ROOT / "README.md"} | {path.name: path for path in sorted((ROOT / "docs").glob("*.md"))}
# Generated from the settings; tests/test_config.py checks it.
GENERATED = {"configuration.md"}
WRITTEN = [name for name in PAGES if name not in GENERATED]
# A command in a sentence or a table.
INLINE = re.compile(
    r"`((?:python|pip|janus-jax|sbatch|kubectl|mpirun|mkdocs|ruff|\./launch/\S+) [^`]+|\./launch/\w+\.sh)`"
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    section: str  # the last heading of level 1 or 2 above the block
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """One command per line; a backslash at the end of a line joins it to the next line."""
        return [line for line in re.sub(r"\\\n\s*", "", self.text).splitlines() if line.strip()]


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page in order."""
    blocks, section, inside = [], "", None
    for line in text_of(page).splitlines():
        if line.startswith("```"):
            if inside is None:
                inside = (line[3:].strip(), [])
            else:
                blocks.append(Block(page, section, inside[0], "\n".join(inside[1]) + "\n"))
                inside = None
        elif inside is not None:
            inside[1].append(line)
        elif re.match(r"#{1,2} ", line):
            section = line.lstrip("#").strip()
    assert inside is None, f"{page}: a block of code has no end"
    return blocks


def section(page: str, title: str) -> list[Block]:
    """The shell and Python blocks of one section."""
    blocks = [block for block in blocks_of(page) if block.section == title and block.language in ("bash", "python")]
    assert blocks, f"{page} has no commands in a section {title!r}"
    return blocks


def all_blocks(language: str) -> list[Block]:
    return [block for page in WRITTEN for block in blocks_of(page) if block.language == language]


def inline_commands() -> list[tuple[str, str]]:
    """(page, command) for each command in a sentence or a table."""
    return [(page, command) for page in WRITTEN for command in INLINE.findall(" ".join(prose_of(page).split()))]
