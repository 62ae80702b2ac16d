"""Checks that the files of a prepared dataset are intact, before a run computes: none is missing, cut short or changed.

The formats of records and arrays contain checksums, so that reading a file checks it.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.data.errors import DataError


def damage_error(path: pathlib.Path, problem: str) -> DataError:
    """The error to raise for a damaged file: its path, the problem and the fix."""
    return DataError(
        f"{path}: {problem}; restore an intact copy, or remove the prepared dataset and prepare it again (the same text and "
        "settings give the same examples, so that a run can resume)"
    )


def read_checked(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """The result of `read(path)`.

    Raises:
      DataError: the file is missing, or `read` raised.
    """
    try:
        return read(path)
    except FileNotFoundError as error:
        raise damage_error(path, "missing") from error
    except Exception as error:  # every format has other error classes
        raise damage_error(path, f"cannot be read ({error})") from error


def checksum(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(directory: pathlib.Path, sums: Mapping[str, str]) -> None:
    """Compares files with their checksums.

    Args:
      directory: of the prepared dataset.
      sums: SHA-256 by the file's path in it; older datasets have none.

    Raises:
      DataError: a file is missing, or it is not the one that was prepared.
    """
    for name, expected in sums.items():
        if read_checked(directory / name, checksum) != expected:
            raise damage_error(directory / name, "not the file that was prepared (its checksum differs)")


def record_files(directory: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The record files of a split in the order of its examples, including files that are missing.

    Args:
      directory: of the TFDS dataset, `NAME/VERSION`.
      split: as in the files' names, `NAME-SPLIT.array_record-00000-of-00001`.
    """
    start = f"{directory.parent.name}-{split}.array_record-"
    file = next(directory.glob(f"{start}*-of-*"), None)
    total = int(file.name.rpartition("-")[2]) if file else 1
    return [directory / f"{start}{number:05d}-of-{total:05d}" for number in range(total)]


def check_record_counts(directory: pathlib.Path, split: str, count: int) -> None:
    """Reads the number of examples at the end of each file of a split: quick for files of any size.

    Args:
      directory, split: see `record_files`.
      count: the expected number of examples.

    Raises:
      DataError: a file is missing or cut short, or the files do not hold `count` examples.
    """
    # Imported here: it takes half a second.
    from array_record.python.array_record_module import ArrayRecordReader

    for name in ("dataset_info.json", "features.json"):
        read_checked(directory / name, lambda path: json.loads(path.read_text("utf-8")))
    total = 0
    for path in record_files(directory, split):
        # For a file that is missing or cut short the reader reports zero records.
        records = ArrayRecordReader(str(path)).num_records()
        if not records:
            raise damage_error(path, "cut short or damaged" if path.exists() else "missing")
        total += records
    if total != count:
        raise damage_error(directory, f"{total} examples of {split}, but {count} in lengths.npz")


def unreadable_example(directory: pathlib.Path, split: str, records: Any, ids: Sequence[int]) -> DataError:
    """The error to raise where some of the examples `ids` cannot be read: it names the first of them and its file.

    Args:
      directory, split: see `record_files`.
      records: the split as a TFDS data source.
      ids: examples of which at least one is unreadable.
    """
    ends = np.cumsum(records.dataset_info.splits[split].shard_lengths)
    for example_id in ids:
        try:
            records[example_id]
        except Exception as error:  # the readers have no error class
            path = record_files(directory, split)[int(np.searchsorted(ends, example_id, side="right"))]
            return damage_error(path, f"example {example_id} of {split} cannot be read ({error})")
    return damage_error(directory, f"examples {ids[0]} to {ids[-1]} of {split} cannot be read together")
