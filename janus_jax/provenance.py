"""Which program made a file: the git revision of this package, and the versions of the libraries that compute with it."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@functools.cache
def revision(package: Path = Path(__file__).parent) -> str | None:
    """The git commit of the checkout that holds the package, followed by "-dirty" if tracked files differ from it.

    Args:
      package: directory of the package.

    Returns:
      None outside a checkout, where git is missing, and where a repository only surrounds the installed package.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """The version of Python and of each library that training computes with."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}
