"""The settings in words: `--help_settings`, and the page docs/configuration.md.

Both come from the descriptions at the fields of `settings.py`. This command writes the page again:

    python -m janus_jax.describe > docs/configuration.md
"""

import difflib
import operator
import textwrap
import types
import typing
from typing import Any, Literal

from janus_jax.checks import ConfigError
from janus_jax.settings import Config, Setting, Weight, all_settings

_NAMES = {int: "whole number", float: "number", bool: "True or False", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "True or False each", str: "texts"}

_INTRODUCTION = """
# Configuration

Every setting, with its default. An experiment file in `configs/` changes some of them, and any of them can be set on
the command line of `python -m janus_jax.data` and `python -m janus_jax.train`:

    python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen --config.train.steps=2000

`--help_settings` prints this list, and `--help_settings=objective` one group of it. A setting that does not exist, has the wrong type or is out of range is an error,
before any work starts; the error names the setting and the fix.

A *schedule* is a list of (step, value) points: linear in between, constant before the first and after the last. For
example, `--config.objective.weights.nar="((0, 0.0), (1000, 0.5))"` raises a weight from 0 to 0.5 in the first 1000
steps. The range of a setting holds for each number of a list and for each value of a schedule.

`python -m janus_jax.describe > docs/configuration.md` makes this page from `janus_jax/settings.py`. Change it there.
"""


def type_name(hint: Any) -> str:
    """The type of a setting in words, for example "whole number"; the choices, where it has some."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if hint == Weight:
        return "number or schedule"
    if origin is Literal:
        return ", ".join(map(repr, args))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(type_name, args))
    if origin is tuple and args[-1] is Ellipsis and args[0] in _PLURALS:
        return f"list of {_PLURALS[args[0]]}"
    if origin is tuple and len(set(args)) == 1 and args[0] in _PLURALS:
        return f"{len(args)} {_PLURALS[args[0]]}"
    raise TypeError(f"no words for settings of type {hint}")


def groups() -> dict[str, list[Setting]]:
    """The settings of each group, by its dotted name; "" is the group of Config's own settings."""
    members: dict[str, list[Setting]] = {}
    for setting in all_settings():
        members.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    return members


def help_text(part: str = "") -> str:
    """The settings as flags, each with type or choices, unit, range and help; for a terminal.

    Args:
      part: a group, with the groups in it, or a setting; "config." may stand before it. Empty: all.

    Raises:
      ConfigError: there is no such group or setting.
    """
    part = part.removeprefix("config").removeprefix(".")
    chosen = {
        group: [s for s in settings if not part or s.name == part or s.name.startswith(f"{part}.")]
        for group, settings in groups().items()
    }
    if not any(chosen.values()):
        names = [*filter(None, chosen), *(setting.name for setting in all_settings())]
        near = difflib.get_close_matches(part, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(filter(None, chosen))}"
        raise ConfigError(f"--help_settings={part}: no such group of settings; {hint}")
    lines = ["Settings, with their defaults:"]
    for group, settings in chosen.items():
        if not settings:
            continue
        lines += ["", f"{_full_name(group)}: {_group_help(group)}"]
        for setting in settings:
            facts = [type_name(setting.type), setting.unit, str(setting.range)]
            text = f"{setting.help} [{'; '.join(fact for fact in facts if fact)}]".strip()
            lines.append(f"  --{_full_name(setting.name)}={_default(setting)}")
            lines += textwrap.wrap(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def page() -> str:
    """The page docs/configuration.md: a section a group, a table of its settings."""
    sections = [_INTRODUCTION.strip()]
    for group, settings in groups().items():
        rows = ["| Setting | Type or choices | Default | Unit | Range | Meaning |", "|---|---|---|---|---|---|"]
        rows += [_row(setting) for setting in settings]
        sections.append(f"## {_full_name(group)}\n\n{_group_help(group)}\n\n" + "\n".join(rows))
    return "\n\n".join(sections) + "\n"


def _row(setting: Setting) -> str:
    hint = setting.type
    if typing.get_origin(hint) is Literal:
        kind = ", ".join(f"`{choice!r}`" for choice in typing.get_args(hint))
    else:
        kind = type_name(hint)
    cells = (
        f"`{_full_name(setting.name)}`",
        kind,
        f"`{_default(setting)}`",
        setting.unit,
        str(setting.range),
        setting.help,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _full_name(name: str) -> str:
    return f"config.{name}" if name else "config"


def _default(setting: Setting) -> str:
    return repr(setting.default)


def _group_help(group: str) -> str:
    value = operator.attrgetter(group)(Config()) if group else Config()
    return " ".join((type(value).__doc__ or "").split())


if __name__ == "__main__":
    print(page(), end="")
