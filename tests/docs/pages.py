"""The pages as text: sections, blocks of code, commands."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": ROOT / "README.md"} | {path.name: path for path in sorted((ROOT / "docs").glob("*.md"))}
# Made from the settings, and checked where it is made.
GENERATED = {"configuration.md"}
WRITTEN = [name for name in PAGES if name not in GENERATED]
# How a command looks that stands in a sentence or a table.
INLINE = re.compile(r"`((?:python|pip|sbatch|kubectl|mpirun|mkdocs|ruff|\./launch/\S+) [^`]+|\./launch/\w+\.sh)`")


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    section: str  # the last heading of level 1 or 2 above it
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """One command a line; a backslash at a line's end joins it to the next."""
        return [line for line in re.sub(r"\\\n\s*", "", self.text).splitlines() if line.strip()]


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page in their order."""
    found, section, inside = [], "", None
    for line in text_of(page).splitlines():
        if line.startswith("```"):
            if inside is None:
                inside = (line[3:].strip(), [])
            else:
                found.append(Block(page, section, inside[0], "\n".join(inside[1]) + "\n"))
                inside = None
        elif inside is not None:
            inside[1].append(line)
        elif re.match(r"#{1,2} ", line):
            section = line.lstrip("#").strip()
    assert inside is None, f"{page}: a block of code has no end"
    return found


def section(page: str, title: str) -> list[Block]:
    """The shell and Python blocks of one section."""
    found = [block for block in blocks_of(page) if block.section == title and block.language in ("bash", "python")]
    assert found, f"{page} has no commands in a section {title!r}"
    return found


def all_blocks(language: str) -> list[Block]:
    return [block for page in WRITTEN for block in blocks_of(page) if block.language == language]


def inline_commands() -> list[tuple[str, str]]:
    """Page and command, of the commands in sentences and tables."""
    return [(page, command) for page in WRITTEN for command in INLINE.findall(" ".join(prose_of(page).split()))]
