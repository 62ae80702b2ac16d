"""Reads weight files and writes the directories of exports.

A weights directory holds model.safetensors or pytorch_model.bin, or an index of shards of either.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from janus_jax.convert import pickles
from janus_jax.convert.errors import ConvertError, library
from janus_jax.convert.report import Report
from janus_jax.convert.values import shown

TOKENIZER = (
    "janus_tokenizer.bin"  # in every export: the tokenizer of the checkpoint, so that an import restores the same one
)
ABOUT = "about.json"  # beside a config.json that holds only janus_jax settings: what else an import needs
_CHECKSUM = "janus_jax_sha256"  # in the metadata of the safetensors files that an export writes
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object of a JSON file.

    Raises:
      ConvertError: no such file, or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror}); name a model's directory") from error
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: holds no JSON object; name a model's directory")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object; keys keep their order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_directory(directory: Path) -> dict[str, Any]:
    """Reads a directory's weight files: name -> array (or torch tensor). safetensors files come before .bin files.

    Raises:
      ConvertError: the directory holds no weights, a file is broken, or a shard is missing.
    """
    for name in WEIGHTS:
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return read_weights(directory / name)
        if index.is_file():
            return _read_shards(index)
    raise ConvertError(f"{directory}: holds neither {' nor '.join(WEIGHTS)} (nor an index of shards)")


def _read_shards(index: Path) -> dict[str, Any]:
    """Reads the weight files that an index names: name -> array (or torch tensor)."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConvertError(f"{index}: weight_map is {shown(weight_map)}; it must give the file of each tensor")
    # A shard must lie beside its index: a path that the index makes up is never followed.
    beside = {path.name for path in index.parent.iterdir() if path.is_file()}
    for shard in weight_map.values():
        if not isinstance(shard, str) or shard not in beside:
            raise ConvertError(f"{index}: names {shown(shard)}, which is not in {index.parent}; fetch all shards")
    weights: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        held = read_weights(index.parent / shard)
        if missing := [name for name, where in weight_map.items() if where == shard and name not in held]:
            raise ConvertError(f"{index}: {shown(missing[0])} is not in {shard}; fetch index and shards again")
        weights |= held
    return weights


def read_weights(path: Path) -> dict[str, Any]:
    """Reads one weight file: name -> array (or torch tensor)."""
    if path.suffix != ".safetensors":
        return tensors(pickles.read(path), path)
    safetensors = library("safetensors")
    try:
        content = path.read_bytes()
        entries = safetensors.deserialize(content)
        arrays = {
            name: np.frombuffer(raw["data"], _DTYPES[raw["dtype"]]).reshape(raw["shape"]) for name, raw in entries
        }
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        raise ConvertError(f"{path}: truncated, or not a safetensors file ({error})") from error
    except KeyError as error:
        raise ConvertError(f"{path}: holds numbers of type {error}; only {', '.join(_DTYPES)} can be read") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    checksum = (header.get("__metadata__") or {}).get(_CHECKSUM)
    if checksum is not None and checksum != _checksum(arrays):
        raise ConvertError(
            f"{path}: damaged: its tensors differ from the checksum that the export wrote; copy it again"
        )
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the names, types, shapes and numbers of arrays: a safetensors file itself has no checksum."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
    return digest.hexdigest()


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes model.safetensors."""
    numpy = library("safetensors.numpy")
    # transformers refuses a file whose format is not "pt"; the numbers are the same in any framework.
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    path.write_bytes(_ordered(numpy.save(arrays, metadata={"format": "pt", _CHECKSUM: _checksum(arrays)})))


def _ordered(content: bytes) -> bytes:
    """A safetensors file with sorted metadata: the library writes them in any order, but equal models give equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


def tensors(state: Any, path: Path) -> dict[str, Any]:
    """`state`, checked to be a dict of tensors by name.

    Raises:
      ConvertError: it is something else.
    """
    if not isinstance(state, Mapping) or not state:
        raise ConvertError(f"{path}: holds no tensors by name; give a model's weights")
    for name, value in state.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise ConvertError(f"{path}: {shown(name)} is no tensor with a name; give a model's weights")
    return dict(state)


def as_float32(weights: Mapping[str, Any], report: Report) -> dict[str, np.ndarray]:
    """Arrays or torch tensors as NumPy arrays, with floating-point numbers as float32; changes are noted in the report."""
    arrays, types = {}, Counter()
    for name, value in weights.items():
        kind = value.dtype.name if isinstance(value, np.ndarray) else str(value.dtype).removeprefix("torch.")
        if not isinstance(value, np.ndarray):
            value = _of_torch(name, value, kind)
        if kind in ("float16", "bfloat16", "float64"):
            types[kind] += 1
            with np.errstate(over="ignore"):  # an infinite number is an error later
                value = value.astype(np.float32)
        arrays[name] = value
    for kind, count in types.items():
        report.notes.append(f"{count} tensors of {kind} became float32")
    return arrays


def _of_torch(name: str, tensor: Any, kind: str) -> np.ndarray:
    """A torch tensor as an array; NumPy has no bfloat16, which becomes float32."""
    try:
        return (tensor.detach().float() if kind == "bfloat16" else tensor.detach()).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        layout = str(tensor.layout).removeprefix("torch.")
        raise ConvertError(
            f"{name}: a {layout} tensor of type {kind}, which has no plain numbers; save it dense, as float32"
        ) from error


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory to fill; renamed to `path` when the block ends without error, removed otherwise.

    Raises:
      ConvertError: `path` exists, or cannot be written.
    """
    path = Path(path).absolute()
    refuse_existing(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(path: str | Path) -> None:
    """Raises ConvertError if something is at `path`, or no directory can be made there."""
    if os.path.lexists(path):
        raise ConvertError(f"{path}: exists already; remove it or name another directory")
    above = next(folder for folder in Path(path).absolute().parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "cannot be written to" if above.is_dir() else "is no directory"
        raise ConvertError(f"{path}: {above} {why}; name another directory")
