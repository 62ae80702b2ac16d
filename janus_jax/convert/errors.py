"""The error of conversions, and the import of libraries that only conversions need."""

import importlib
from typing import Any

INSTALL = 'pip install -r requirements-convert.txt (or, without the checkout, pip install "janus_jax[convert]")'


class ConvertError(ValueError):
    """A model cannot be converted; the message names the file or tensor and the fix."""


def library(name: str) -> Any:
    """A module of a library that training and decoding do not require.

    Raises:
      ConvertError: the library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConvertError(
            f"this conversion needs {name.split('.')[0]} ({error}); install what conversions need: {INSTALL}"
        ) from error
