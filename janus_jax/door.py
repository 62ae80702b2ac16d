"""What the doors that take an experiment file share: `--config=FILE.py[:preset]`, `--config.group.key=value`, errors.

A door's exit status is 0, or 2 after a mistake in what was asked for, told in one line on stderr with its fix.
"""

import ast
import difflib
import re
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from janus_jax.config import Config, ConfigError, default_config, leaves, resolve

_SETTING = re.compile(r"--?(?:no)?config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def run(
    argv: Sequence[str] | None,
    *,
    module: str,
    doc: str,
    define: Callable[[flags.FlagValues], None],
    body: Callable[[Config, flags.FlagValues], int],
    mistakes: tuple[type[Exception], ...] = (),
) -> int:
    """Parses a command line, resolves its config and runs the door's body.

    Args:
      argv: arguments without the program's name; None: the process's own.
      module: the door, as in `python -m module`.
      doc: its description, for --help.
      define: defines the door's other flags on the given FlagValues; one without a default (None) must be given.
      body: does the work; its result is the exit status.
      mistakes: errors of `body` that are the user's to fix, beside ConfigError.

    Returns:
      The exit status.
    """
    try:
        parsed = _parse(list(sys.argv[1:] if argv is None else argv), module, define)
        if parsed is None:
            print(_help(module, doc, define))
            return 0
        return body(*parsed)
    except (ConfigError, *mistakes) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def load_config(path: str, argv: Sequence[str] = ()) -> Config:
    """The resolved config of an experiment file, `FILE.py[:preset]`, with `--config.key=value` overrides.

    Raises:
      ConfigError: the file, a preset or a setting is wrong.
    """
    config, _ = _parse([f"--config={path}", *argv], "janus_jax", lambda values: None)
    return config


def _parse(
    argv: list[str], module: str, define: Callable[[flags.FlagValues], None]
) -> tuple[Config, flags.FlagValues] | None:
    """The config and the flags; None when help is asked for."""
    plain, structured = _take_structured(argv)
    program = f"python -m {module}"
    values = _values(define, [program, *plain])
    try:
        rest = values([program, *plain])
    except (flags.Error, KeyError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(_unknown_setting(argv) or _told(error)) from error
    if values.help:
        return None
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}; settings are given as --config.group.key=value")
    missing = [f"--{name}" for name in values if values[name].value is None]
    if missing:
        raise ConfigError(f"{' and '.join(sorted(missing))} must be given; {program} --help shows all flags")
    if not isinstance(values.config, ml_collections.ConfigDict):  # a stand-in that raises when it is read
        raise ConfigError(f"--config={_given_file(argv)}: cannot be read; name an experiment file, FILE.py[:preset]")
    _set_structured(values.config, structured)
    return resolve(values.config), values


def _values(define: Callable[[flags.FlagValues], None], argv: list[str]) -> flags.FlagValues:
    # Its own flags and not absl's: two doors in one process, as in tests, would define --config twice.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment file, FILE.py[:preset]; any setting: --config.group.key=value.",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    define(values)
    return values


def _take_structured(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Divides arguments from settings written as a list, "(16, 32)": the flags know one type for each setting."""
    plain, structured = [], {}
    for argument in argv:
        match = _SETTING.fullmatch(argument)
        if match and (match[2] or "").lstrip().startswith(("(", "[")):
            structured[match[1]] = match[2]
        else:
            plain.append(argument)
    return plain, structured


def _set_structured(config: ml_collections.ConfigDict, structured: dict[str, str]) -> None:
    for name, text in structured.items():
        group = config
        *groups, key = name.split(".")
        for part in groups:
            group = group.get(part, None)
            if not isinstance(group, ml_collections.ConfigDict):
                break
        if not isinstance(group, ml_collections.ConfigDict) or key not in group:
            raise ConfigError(_unknown_setting([f"--config.{name}"]))
        try:
            group[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"--config.{name}={text}: not a list; write for example (16, 32)") from error


def _unknown_setting(argv: list[str]) -> str | None:
    """What is wrong with the first argument that names a setting which does not exist."""
    names = [name for name, _ in leaves(resolve(default_config()))]
    known = {*names, *(".".join(name.split(".")[:depth]) for name in names for depth in (1, 2))}
    for argument in argv:
        match = _SETTING.fullmatch(argument)
        if match and match[1] not in known:
            last = match[1].rsplit(".", 1)[-1]
            same = [name for name in names if name.rsplit(".", 1)[-1] == last]
            near = same or difflib.get_close_matches(match[1], names, n=1, cutoff=0.75)
            choice = " or ".join(f"--config.{name}" for name in near)
            hint = f"did you mean {choice}?" if near else "janus_jax/settings.py lists all"
            return f"--config.{match[1]}: unknown setting; {hint}"
    return None


def _told(error: Exception) -> str:
    """An error in one line; of a traceback in it, what it ends with."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if "Traceback (most recent call last)" in text:
        flag = text.splitlines()[0].split(": Error")[0].removeprefix("flag ")
        return f"{flag}: {re.sub(r'^[A-Za-z_.]*(Error|Exception): ', '', text.splitlines()[-1])}"
    return " ".join(line.strip() for line in text.splitlines())


def _given_file(argv: list[str]) -> str:
    return next((a.split("=", 1)[1] for a in argv if a.lstrip("-").startswith("config=")), "")


def _help(module: str, doc: str, define: Callable[[flags.FlagValues], None]) -> str:
    return f"{doc.strip()}\n{_values(define, [module]).get_help()}"
