"""What may be wrong with the files of a prepared dataset, told before a run computes: a file that is missing, cut short or
changed. Records and arrays carry checksums of their own, so that reading them is the check.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_jax.data.errors import DataError


def damaged(path: pathlib.Path, what: str) -> DataError:
    """The error to raise: a file, what is wrong with it, and the fix."""
    return DataError(
        f"{path}: {what}; put a whole copy back, or remove the prepared dataset and prepare it again (the same text and "
        "settings give the same examples, with which a run goes on)"
    )


def read_file(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """What `read` makes of a file.

    Raises:
      DataError: it is missing, or `read` raised.
    """
    try:
        return read(path)
    except FileNotFoundError as error:
        raise damaged(path, "missing") from error
    except Exception as error:  # each kind of file has errors of its own
        raise damaged(path, f"cannot be read ({error})") from error


def record_files(directory: pathlib.Path, split: str) -> list[pathlib.Path]:
    """A split's files in the order of its examples, those included that should be there and are not.

    Args:
      directory: of the TFDS dataset, `NAME/VERSION`.
      split: as in the files' names, `NAME-SPLIT.array_record-00000-of-00001`.
    """
    start = f"{directory.parent.name}-{split}.array_record-"
    found = next(directory.glob(f"{start}*-of-*"), None)
    total = int(found.name.rpartition("-")[2]) if found else 1
    return [directory / f"{start}{number:05d}-of-{total:05d}" for number in range(total)]


def check_ends(directory: pathlib.Path, split: str, count: int) -> None:
    """Looks at the ends of a split's files, where the number of their examples stands: quick, whatever their size.

    Raises:
      DataError: a file is missing or cut short, or they hold other than `count` examples.
    """
    # Half a second that `import janus_jax.data` need not wait for.
    from array_record.python.array_record_module import ArrayRecordReader

    for name in ("dataset_info.json", "features.json"):
        read_file(directory / name, lambda path: json.loads(path.read_text("utf-8")))
    total = 0
    for path in record_files(directory, split):
        # Of a file that is missing or cut short the reader only says that it holds nothing.
        found = ArrayRecordReader(str(path)).num_records()
        if not found:
            raise damaged(path, "cut short or damaged" if path.exists() else "missing")
        total += found
    if total != count:
        raise damaged(directory, f"{total} examples of {split}, but {count} in lengths.npz")


def unreadable(directory: pathlib.Path, split: str, records: Any, ids: Sequence[int]) -> DataError:
    """The error to raise where examples `ids` cannot be read: it names the first of them and its file.

    Args:
      directory, split: see `record_files`.
      records: the split as a TFDS data source.
      ids: one of them, at least, is unreadable.
    """
    ends = np.cumsum(records.dataset_info.splits[split].shard_lengths)
    for example_id in ids:
        try:
            records[example_id]
        except Exception as error:  # the readers have no error of their own
            path = record_files(directory, split)[int(np.searchsorted(ends, example_id, side="right"))]
            return damaged(path, f"example {example_id} of {split} cannot be read ({error})")
    return damaged(directory, f"examples {ids[0]} to {ids[-1]} of {split} cannot be read together")
