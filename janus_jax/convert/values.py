"""Numbers and flags of other programs' settings, checked: a wrong kind is an error that names the setting."""

from typing import Any

from janus_jax.convert.errors import ConvertError

LARGEST = 2**24  # of any size that a setting may name; no model comes near, and products stay far from overflow


def whole(value: Any, where: str) -> int:
    """A size or count.

    Args:
      value: from JSON or a pickle, of any kind.
      where: the file and the setting, for the message.

    Raises:
      ConvertError: it is no whole number from 1 to LARGEST.
    """
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ConvertError(f"{where} is {shown(value)}; it must be a whole number from 1 to {LARGEST}")
    return value


def rate(value: Any, where: str) -> float:
    """A dropout rate; see `whole`."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ConvertError(f"{where} is {shown(value)}; it must be a number from 0 to below 1")
    return float(value)


def flag(value: Any, where: str) -> bool:
    """True or false; see `whole`."""
    if type(value) is not bool:
        raise ConvertError(f"{where} is {shown(value)}; it must be true or false")
    return value


def shown(value: Any) -> str:
    """A value in a message: one short line."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of thousands of digits
        return "a whole number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
