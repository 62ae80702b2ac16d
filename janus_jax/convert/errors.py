"""The error of conversions, and the libraries that only conversions need."""

import importlib
import shlex
from pathlib import Path
from typing import Any

_LIST = Path(__file__).resolve().parents[2] / "requirements-convert.txt"


class ConvertError(ValueError):
    """A model cannot be converted; the message names the file or tensor and the fix."""


def require(*names: str) -> None:
    """Checks that modules can be imported whose libraries training and decoding do not require.

    Raises:
      ConvertError: some cannot; the message names all their libraries, and the command that installs them.
    """
    missing: dict[str, ImportError] = {}
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.setdefault(name.partition(".")[0], error)
    if missing:
        errors = "; ".join(map(str, missing.values()))
        raise ConvertError(
            f"this conversion needs {' and '.join(missing)} ({errors}); install what conversions need: {install_command()}"
        ) from next(iter(missing.values()))


def install_command() -> str:
    """The command that installs what conversions need, in the current directory; the versions are pinned in a checkout."""
    if not _LIST.is_file():  # an installed package
        return 'pip install "janus_jax[convert]"'
    return f"pip install -r {_LIST.name if Path.cwd() == _LIST.parent else shlex.quote(str(_LIST))}"


def library(name: str) -> Any:
    """A module of a library that training and decoding do not require.

    Raises:
      ConvertError: the library is not installed.
    """
    require(name)
    return importlib.import_module(name)
