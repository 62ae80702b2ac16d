"""What the command lines share: mistakes of the user are one line on stderr, with the fix, and exit status 2.

`run` is for commands that take an experiment file, `--config=FILE.py[:preset] --config.group.key=value`; `ArgumentParser` is
for all others. If the current directory has no experiment file `configs/NAME.py`, that of the package is used.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import itertools
import logging
import os
import re
import sys
import traceback
import types as types_module
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from janus_jax import describe
from janus_jax.config import Config, ConfigError, resolve
from janus_jax.settings import all_settings

# The folder that holds the `configs` of the package: setup.py puts it into a wheel; in a checkout it is the checkout.
_PACKAGE = Path(__file__).parent
_SHIPPED = next(folder for folder in (_PACKAGE / "experiments", _PACKAGE.parent) if folder.is_dir())
_SETTING = re.compile(r"--?(no)?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
_HOME = re.compile(r"^(--?[\w.]+=)~(?=/|$)")
_HELP_SETTINGS = re.compile(r"--?help_settings(?:=(.*))?")

_SETTINGS_HELP = (
    "Any setting of the experiment file can be changed: --config.group.key=value. --help_settings lists them all, "
    "--help_settings=objective those of a group."
)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line, and with the nearest flag for one that does not exist. Flags are not abbreviated."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse, but a flag that does not exist is reported before one that is missing: it may be its misspelling."""
        args = _with_home(sys.argv[1:] if args is None else args)
        known = _option_strings(self)
        for argument in args:
            flag = argument.split("=", 1)[0]
            if len(flag) > 2 and flag.startswith("--") and flag not in known:
                self.error(self._unknown(argument))
            if argument == f"{flag}=--":  # argparse drops it and gives an empty list
                self.error(f"{argument}: '--' is no value")
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self._unknown(rest[0]))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Reports a mistake in one line and ends the process with status 2."""
        text = " ".join(message.split())
        self.exit(2, f"error: {text if len(text) < 400 else text[:400] + '...'}; --help lists the flags\n")

    def _unknown(self, argument: str) -> str:
        flag = argument.split("=", 1)[0]
        if not flag.startswith("-"):
            return f"unexpected argument {argument!r}; a flag is written --name=value"
        known = [name for name in _option_strings(self) if name.startswith("--")]
        if flag in known:
            return f"{flag}: goes with another command"
        # Without the dashes, which would make all flags alike.
        near = [f"--{name}" for name in difflib.get_close_matches(flag.lstrip("-"), [k[2:] for k in known], n=1)]
        near = near or [name for name in known if flag.startswith("--") and name.startswith(flag)][:1]
        return f"{flag}: unknown flag" + (f"; did you mean {near[0]}?" if near else "")


def report_mistakes(body: Callable[[], None]) -> int:
    """Runs the body of a command; what the user can fix becomes one line on stderr.

    Returns:
      The exit status.
    """
    _open_stderr()
    try:
        with _warnings():
            body()
    except (OSError, ValueError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("error: the device has too little memory for this; make the batches or the beam smaller", file=sys.stderr)
        return 2
    return 0


def _open_stderr() -> None:
    """A process that was started without standard error (`2>&-`) writes it to nothing: Python gives it none."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, it stays open as standard error does


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Shows the package's warnings as commands write theirs, and each of them once."""
    seen: set[str] = set()

    def first_time(record: logging.LogRecord) -> bool:
        known = len(seen)
        seen.add(record.getMessage())
        return len(seen) > known

    logger, handler = logging.getLogger("janus_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.addFilter(first_time)
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def _with_home(argv: Sequence[str]) -> list[str]:
    """The arguments with the home directory in place of a `~` behind `=`, where a shell leaves it as it is."""
    return [_HOME.sub(lambda match: match[1] + os.path.expanduser("~"), word) for word in argv]


def _option_strings(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser and of its commands."""
    names = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names += [name for command in action.choices.values() for name in _option_strings(command)]
    return names


def run(
    argv: Sequence[str] | None,
    *,
    module: str,
    doc: str,
    define: Callable[[flags.FlagValues], None],
    body: Callable[[Config, flags.FlagValues], int],
    mistakes: tuple[type[Exception], ...] = (),
    adjust: Callable[[ml_collections.ConfigDict, frozenset[str]], str] | None = None,
) -> int:
    """Parses a command line, resolves its config and runs the command.

    Args:
      argv: arguments without the program's name; None: those of the process.
      module: the command, as in `python -m module`.
      doc: its description, for --help.
      define: defines the command's other flags on a FlagValues; a flag without a default (None) is required.
      body: does the work; its result is the exit status.
      mistakes: errors of `body`, beside ConfigError, that the user can fix.
      adjust: may change the settings that the command line does not name, before they are checked. It gets them and the
        names of those that the command line names; its result is a line for stderr, or empty.

    Returns:
      The exit status.
    """
    _open_stderr()
    try:
        parsed = _parse(list(sys.argv[1:] if argv is None else argv), module, define, doc, adjust)
        if isinstance(parsed, str):
            print(parsed)
            return 0
        with _warnings():
            return body(*parsed)
    except (ConfigError, *mistakes) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2


def load_config(path: str, argv: Sequence[str] = ()) -> Config:
    """The resolved config of an experiment file, `FILE.py[:preset]`, with `--config.key=value` overrides.

    Raises:
      ConfigError: the file, a preset or a setting is wrong.
    """
    config, _ = _parse([f"--config={path}", *argv], "janus_jax", lambda values: None)
    return config


def _parse(
    argv: list[str],
    module: str,
    define: Callable[[flags.FlagValues], None],
    doc: str = "",
    adjust: Callable[[ml_collections.ConfigDict, frozenset[str]], str] | None = None,
) -> tuple[Config, flags.FlagValues] | str:
    """The config and the flags; the help text where the arguments ask for it."""
    if help_settings := next(filter(None, map(_HELP_SETTINGS.fullmatch, argv)), None):
        return describe.help_text(help_settings[1] or "")
    argv = _with_shipped_file(_with_home(argv))
    sys.modules.pop("config_config", None)  # ml_collections would execute this file in the module of the one before
    plain, numbers = _take_numbers(argv)
    program = f"python -m {module}"
    values = _values(define, [program, *plain])
    try:
        with _importable_configs():
            rest = values([program, *plain])
    except (Exception, SystemExit) as error:  # of absl, or of the experiment file, which is a program
        place = _place(error, _config_file(argv))
        if not place and isinstance(error, AttributeError) and error.name == "get_config":
            raise ConfigError(
                f"--config={_config_file(argv)}: has no function get_config(); configs/mine.py is an example"
            ) from error
        if not place and not isinstance(error, (flags.Error, KeyError, AttributeError, ValueError, TypeError)):
            raise
        raise ConfigError(
            place + message_of(error) if place else _unknown_setting(argv) or message_of(error)
        ) from error
    if values.help:
        return f"{doc.strip()}\n\n{_flag_help(values)}\n\n{_SETTINGS_HELP}"
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}; write settings as --config.group.key=value")
    file = _config_file(argv)
    missing = [f"--{name}" for name in values if values[name].value is None and not (file and name == "config")]
    missing += [f"--{name}" for name in values if values[name].default is None and values[name].value == ""]
    if missing:
        raise ConfigError(f"{' and '.join(sorted(missing))} must be set; {program} --help shows all flags")
    if not isinstance(values.config, ml_collections.ConfigDict):
        absent = "cannot be read; name an experiment file, FILE.py[:preset]"  # a stand-in that raises when it is read
        near = difflib.get_close_matches(file.split(":")[0], _shipped_files(), n=1)
        absent += f"; did you mean {near[0]}?" if near else ""
        wrong = (
            f"get_config() must return the ConfigDict of janus_jax.config.default_config(), changed; it returned "
            f"{type(values.config).__name__}"
        )
        is_absent = not Path(file.split(":")[0]).is_file()
        raise ConfigError(f"--config={file}: {absent if is_absent else wrong}")
    _set_numbers(values.config, numbers)
    overridden = frozenset(match[2] for match in map(_SETTING.fullmatch, argv) if match)
    if adjust is not None and (note := adjust(values.config, overridden)):
        print(note, file=sys.stderr)
    return resolve(values.config), values


def _with_shipped_file(argv: list[str]) -> list[str]:
    """The arguments, with the path in the package of a file `configs/NAME.py` that the current directory does not have."""
    value = _config_file(argv)
    file = Path(value.split(":")[0])
    if file.parent != Path("configs") or file.exists() or not (_SHIPPED / file).is_file():
        return argv
    spellings = (value, f"--config={value}", f"-config={value}")
    return [word.replace(value, str(_SHIPPED / value)) if word in spellings else word for word in argv]


def _shipped_files() -> list[str]:
    return [f"configs/{path.name}" for path in (_SHIPPED / "configs").glob("*.py")]


@contextlib.contextmanager
def _importable_configs() -> Iterator[None]:
    """Lets experiment files import modules of `configs`: of the current directory, or else of the package."""
    before = list(sys.path)
    # Each experiment reads them anew: a notebook may edit them, or go to another folder. Other programs keep theirs.
    others = _take_configs()
    sys.path += [os.getcwd(), str(_SHIPPED)]  # `configs` is a namespace package: both folders together
    importlib.invalidate_caches()  # the folders may have got files since the last experiment file of this process
    try:
        yield
    finally:
        sys.path[:] = before
        _take_configs()
        sys.modules.update(others)


def _take_configs() -> dict[str, Any]:
    """Removes `configs` and its modules from the loaded ones, and returns them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "configs"}


def _values(define: Callable[[flags.FlagValues], None], argv: list[str]) -> flags.FlagValues:
    # Not absl's global flags: two commands in one process, as in tests, would define --config twice.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment file, FILE.py[:preset]; those of the package are configs/NAME.py.",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    # `_parse` reads it: a flag of absl that may have a value must have one.
    flags.DEFINE_bool("help_settings", False, "List the settings and end.", flag_values=values)
    define(values)
    return values


def _take_numbers(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits off the settings that are numbers or lists: a flag of ml_collections knows only the type of the file's value.

    There a weight may be a number or a schedule, and 0 may stand for 0.0.
    """
    types = {setting.name: setting.type for setting in all_settings()}
    plain, numbers, rest = [], {}, iter(argv)
    for argument in rest:
        match = _SETTING.fullmatch(argument)
        hint = types.get(match[2]) if match and not match[1] else None
        if hint in (int, float) or typing.get_origin(hint) in (tuple, types_module.UnionType, typing.Union):
            value = match[3] if match[3] is not None else next(rest, None)
            if value is None or (match[3] is None and value.startswith("--")):
                raise ConfigError(f"{argument}: has no value; write --config.{match[2]}=VALUE")
            numbers[match[2]] = value
        else:
            plain.append(argument)
    return plain, numbers


def _set_numbers(config: ml_collections.ConfigDict, numbers: dict[str, str]) -> None:
    types = {setting.name: setting.type for setting in all_settings()}
    for name, text in numbers.items():
        *groups, key = name.split(".")
        group = config
        for part in groups:
            group = group.get(part, None)
            if not isinstance(group, ml_collections.ConfigDict):
                raise ConfigError(f"--config.{name}: {part} is no group of settings in the experiment file")
        try:
            value = _number(types[name], text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            example = " or a list, for example (16, 32)" if types[name] not in (int, float) else ""
            kind = "whole number" if types[name] is int else "number"
            raise ConfigError(f"--config.{name}={text[:80]}: not a {kind}{example}") from error
        with group.unlocked(), group.ignore_type():
            group[key] = value


def _number(hint: Any, text: str) -> Any:
    if hint is int:
        return int(text)
    if hint is float:
        return float(text)
    return ast.literal_eval(text)


def _unknown_setting(argv: list[str]) -> str | None:
    """The error of the first argument that names a setting which does not exist; None: there is none."""
    names = [setting.name for setting in all_settings()]
    known = {*names, *describe.groups()}
    for argument in argv:
        match = _SETTING.fullmatch(argument)
        name = argument.split("=", 1)[0]
        if name.startswith("--") and "." in name and name[2:] in known:
            return f"{name}: unknown flag; did you mean --config.{name[2:]}?"
        word, _, rest = name.lstrip("-").partition(".")
        if rest in known and word != "config" and difflib.get_close_matches(word, ["config"]):
            return f"--{word}.{rest}: unknown flag; did you mean --config.{rest}?"
        if match and match[2] not in known:
            last = match[2].rsplit(".", 1)[-1]
            same = [name for name in names if name.rsplit(".", 1)[-1] == last]
            near = same or difflib.get_close_matches(match[2], names, n=1, cutoff=0.75)
            choice = " or ".join(f"--config.{name}" for name in near)
            hint = f"did you mean {choice}?" if near else "--help_settings lists all"
            return f"--config.{match[2]}: unknown setting; {hint}"
    return None


def message_of(error: BaseException) -> str:
    """An error in one line; a traceback in it is reduced to its last line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if unknown := re.search(r'Key "(.*?)" does not exist and cannot be added', text):
        near = re.search(r'Did you mean "(.*?)" instead', text)
        hint = f"did you mean {near[1]}?" if near else "--help_settings lists all"
        return f"unknown setting {unknown[1]}; {hint}"
    if "Traceback (most recent call last)" in text:
        flag = text.splitlines()[0].split(": Error")[0].removeprefix("flag ")
        return f"{flag}: {re.sub(r'^[A-Za-z_.]*(Error|Exception): ', '', text.splitlines()[-1])}"
    return " ".join(line.strip() for line in text.splitlines())


def _place(error: BaseException | None, file: str) -> str:
    """Where the experiment file failed, and the class of the error; empty where it is not to blame."""
    path = os.path.abspath(file.split(":")[0])
    while error is not None and not isinstance(error, ConfigError):  # its message says enough
        if isinstance(error, SyntaxError) and os.path.abspath(error.filename or path) == path:
            return f"--config={file}, line {error.lineno or 1}: {type(error).__name__}: "
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.abspath(frame.filename) == path
        ]
        if lines:
            return f"--config={file}, line {lines[-1]}: {type(error).__name__}: "
        error = error.__cause__ or error.__context__
    return ""


def _config_file(argv: list[str]) -> str:
    """The value of --config, wherever it stands."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, separator, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if separator else following
    return ""


def _flag_help(values: flags.FlagValues) -> str:
    """The flags, one a paragraph; without those that absl adds to each program."""
    lines = []
    for module, members in values.flags_by_module_dict().items():
        for flag in members if module != "absl.flags" else ():
            default = "required" if flag.default is None else f"default: {flag.default_as_str}"
            short = f"-{flag.short_name}, " if flag.short_name else ""
            lines.append(f"  {short}--{'[no]' if flag.boolean else ''}{flag.name}: {flag.help} ({default})")
    return "\n".join(sorted(lines, key=lambda line: line.replace("[no]", "").split("--")[1]))
