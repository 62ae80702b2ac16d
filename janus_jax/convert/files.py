"""Weight files and the directories that exports write.

Legend of a weights directory: model.safetensors or pytorch_model.bin, or an index of shards of either.
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

TOKENIZER = "janus_tokenizer.bin"  # in every export: our tokenizer's own bytes, so that an import gives the same one
ABOUT = "about.json"  # beside a config.json that is nothing but our settings: what else is known
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
      ConvertError: no such file, or not a JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror}); name a model's directory") from error
    except ValueError as error:
        raise ConvertError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConvertError(f"{path}: a JSON object was expected")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, keys in the order given."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_directory(directory: Path) -> dict[str, Any]:
    """Name -> array (or torch tensor) of a directory's weight files; safetensors come first.

    Raises:
      ConvertError: no weights there, a broken file, or a shard that is missing.
    """
    for name in WEIGHTS:
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return read_weights(directory / name)
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            found: dict[str, Any] = {}
            for shard in shards:
                # A shard is a file beside its index, whatever its index says.
                if Path(shard).name != shard or not (directory / shard).is_file():
                    raise ConvertError(f"{index}: names {shard!r}, which is not in {directory}; fetch all shards")
                found |= read_weights(directory / shard)
            return found
    raise ConvertError(f"{directory}: holds neither {' nor '.join(WEIGHTS)} (nor an index of shards)")


def read_weights(path: Path) -> dict[str, Any]:
    """Name -> array (or torch tensor) of one file."""
    if path.suffix != ".safetensors":
        return tensors(pickles.read(path), path)
    safetensors = library("safetensors")
    try:
        found = safetensors.deserialize(path.read_bytes())
        return {name: np.frombuffer(raw["data"], _DTYPES[raw["dtype"]]).reshape(raw["shape"]) for name, raw in found}
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        raise ConvertError(f"{path}: truncated, or not a safetensors file ({error})") from error
    except KeyError as error:
        raise ConvertError(f"{path}: holds numbers of type {error}; only {', '.join(_DTYPES)} are read") from error


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes model.safetensors."""
    numpy = library("safetensors.numpy")
    # "pt" is what transformers asks of a file; the numbers are the same in any framework.
    numpy.save_file(
        {name: np.ascontiguousarray(value) for name, value in arrays.items()}, path, metadata={"format": "pt"}
    )


def tensors(state: Any, path: Path) -> dict[str, Any]:
    """`state` if it is a dict of tensors by name.

    Raises:
      ConvertError: it is not.
    """
    if not isinstance(state, Mapping) or not state or not all(hasattr(value, "shape") for value in state.values()):
        raise ConvertError(f"{path}: holds no tensors by name; give a model's weights")
    return dict(state)


def as_float32(found: Mapping[str, Any], report: Report) -> dict[str, np.ndarray]:
    """Arrays or torch tensors as NumPy arrays, floating-point numbers as float32, which the report tells."""
    arrays, types = {}, Counter()
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            value = value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()
            kind = str(found[name].dtype).removeprefix("torch.")
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
    """A directory to fill, renamed to `path` when the block ends without error, removed otherwise.

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
