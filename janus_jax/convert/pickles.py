"""Reads PyTorch's pickled files (.pt, .bin) without running code from them.

`torch.load(weights_only=True)` refuses every name in a pickle that is not on its list of tensor types. fairseq also
pickles settings: argparse.Namespace, OmegaConf containers, fairseq's dataclasses and enums, NumPy scalars. The reader
replaces these classes by stand-ins that only store their arguments, so that neither these libraries nor their code is
needed.
"""

import _compat_pickle  # the renamed modules of Python 2, which protocol 2 writes; torch.load applies the same renamings
import argparse
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_jax.convert.errors import ConvertError, library

# Every class or function of such a name is replaced by a stand-in.
_SETTINGS = re.compile(
    r"(omegaconf|fairseq|fairseq_cli|hydra|numpy|typing|enum|pathlib)\..*"
    r"|(builtins\.(list|dict|tuple|int|float|bool|str|type))|_?operator\.getitem"
)
_EMPTY_DICTS = ("collections.defaultdict",)
_BLOCK = 1 << 20
_LEGACY_PICKLES = 5  # a file from before PyTorch 1.6 is this many pickles, then the data of the tensors


class StandIn:
    """Replaces an object of a class that may not be installed: stores the constructor's arguments and the attributes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        stand_in = super().__new__(cls)
        stand_in.arguments = args
        return stand_in

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update(part)


def read(path: Path) -> Any:
    """The object in a file that `torch.save` wrote; unknown settings classes are `StandIn`s.

    Raises:
      ConvertError: the file does not exist, is no PyTorch file, is truncated or damaged, or its pickle would run code.
    """
    torch = library("torch")
    try:
        _check_archive(path)
        safe = [(StandIn, name) for name in _names(path) if _SETTINGS.fullmatch(name)]
        safe += [(argparse.Namespace, "argparse.Namespace"), *((_empty_dict, name) for name in _EMPTY_DICTS)]
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ConvertError:
        raise
    except FileNotFoundError as error:
        raise ConvertError(f"{path}: no such file") from error
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch, zipfile and pickle raise many classes on broken files
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ConvertError(
                f"{path}: refused: its pickle calls {refused[1]}, which is neither a tensor nor a setting and could run any "
                "code; download the file again, or save only its weights with the program that wrote it"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConvertError(f"{path}: truncated, or not a file that torch.save wrote ({reason[:200]})") from error


def plain(value: Any) -> Any:
    """Settings as nested dicts, lists and scalars, without namespaces, OmegaConf containers and enums.

    Raises:
      ConvertError: they are nested too deep, or hold themselves.
    """
    try:
        return _plain(value)
    except RecursionError as error:
        raise ConvertError("the settings are nested too deep: damaged or foreign checkpoint") from error


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, StandIn):
        fields = vars(value)
        for name in ("_content", "_val"):  # of OmegaConf's containers and leaves
            if name in fields:
                return _plain(fields[name])
        return _plain(fields["arguments"][0]) if fields["arguments"] else None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float)) or value is None else type(value).__name__


def _empty_dict(*args: Any) -> dict:
    return {}


def _names(path: Path) -> set[str]:
    """Every global name in the pickles of a file, as Python 3 spells it."""
    names: set[str] = set()
    for stream in _pickles(path):
        for op, argument, _ in stream:
            if op.name == "GLOBAL":
                module, name = argument.split(" ", 1)
                module, name = _compat_pickle.NAME_MAPPING.get(
                    (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
                )
                names.add(f"{module}.{name}")
    return names


def _check_archive(path: Path) -> None:
    """Compares every member of a zip archive with its checksum, which `torch.load` does not do."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC:  # written without checksums (torch.serialization.set_crc32_options)
                continue
            try:
                with archive.open(member) as content:
                    while content.read(_BLOCK):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ConvertError(
                    f"{path}: damaged: {member.filename} differs from its checksum; copy or download the file again"
                ) from error


def _pickles(path: Path) -> Iterator[Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith("data.pkl"):
                    member.CRC = member.CRC or None  # None: not compared
                    with archive.open(member) as content:
                        yield pickletools.genops(content.read())
        return
    with open(path, "rb") as file:
        if file.read(1) != pickle.PROTO:
            raise ConvertError(f"{path}: truncated, or not a file that torch.save wrote (no pickle, no archive)")
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            yield pickletools.genops(file)
