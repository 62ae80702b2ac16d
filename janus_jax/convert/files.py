"""Reads weight files and writes the directories of exports.

A weights directory holds model.safetensors or pytorch_model.bin, or an index of shards of either.
"""

import contextlib
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

TOKENIZER = (
    "janus_tokenizer.bin"  # in every export: the tokenizer of the checkpoint, so that an import restores the same one
)
ABOUT = "about.json"  # beside a config.json that holds only janus_jax settings: the training step
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
    except ValueError as error:
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
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            weights: dict[str, Any] = {}
            for shard in shards:
                # A shard must lie beside its index: a path that the index makes up is never followed.
                if Path(shard).name != shard or not (directory / shard).is_file():
                    raise ConvertError(f"{index}: names {shard!r}, which is not in {directory}; fetch all shards")
                weights |= read_weights(directory / shard)
            return weights
    raise ConvertError(f"{directory}: holds neither {' nor '.join(WEIGHTS)} (nor an index of shards)")


def read_weights(path: Path) -> dict[str, Any]:
    """Reads one weight file: name -> array (or torch tensor)."""
    if path.suffix != ".safetensors":
        return tensors(pickles.read(path), path)
    safetensors = library("safetensors")
    try:
        entries = safetensors.deserialize(path.read_bytes())
        return {name: np.frombuffer(raw["data"], _DTYPES[raw["dtype"]]).reshape(raw["shape"]) for name, raw in entries}
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        raise ConvertError(f"{path}: truncated, or not a safetensors file ({error})") from error
    except KeyError as error:
        raise ConvertError(f"{path}: holds numbers of type {error}; only {', '.join(_DTYPES)} can be read") from error


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes model.safetensors."""
    numpy = library("safetensors.numpy")
    # transformers refuses a file whose format is not "pt"; the numbers are the same in any framework.
    numpy.save_file(
        {name: np.ascontiguousarray(value) for name, value in arrays.items()}, path, metadata={"format": "pt"}
    )


def tensors(state: Any, path: Path) -> dict[str, Any]:
    """`state`, checked to be a dict of tensors by name.

    Raises:
      ConvertError: it is something else.
    """
    if not isinstance(state, Mapping) or not state or not all(hasattr(value, "shape") for value in state.values()):
        raise ConvertError(f"{path}: holds no tensors by name; give a model's weights")
    return dict(state)


def as_float32(weights: Mapping[str, Any], report: Report) -> dict[str, np.ndarray]:
    """Arrays or torch tensors as NumPy arrays, with floating-point numbers as float32; changes are noted in the report."""
    arrays, types = {}, Counter()
    for name, value in weights.items():
        if not isinstance(value, np.ndarray):
            value = value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()
            kind = str(weights[name].dtype).removeprefix("torch.")
        else:
            kind = value.dtype.name
        if kind in ("float16", "bfloat16", "float64"):
            types[kind] += 1
            value = value.astype(np.float32)
        arrays[name] = value
    for kind, count in types.items():
        report.notes.append(f"{count} tensors of {kind} became float32")
    return arrays


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
    """Raises ConvertError if something is at `path`."""
    if os.path.lexists(path):
        raise ConvertError(f"{path}: exists already; remove it or name another directory")
