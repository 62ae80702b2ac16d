"""A prepared dataset on disk: token ids as a TFDS dataset of array_record files, lengths, tokenizer, settings, report.

It holds sentence pairs, or blocks of text for denoising. An example has a list of ids for each column.

Legend: N examples of a split, B rows, S source length, T target length.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from janus_jax import files, text
from janus_jax.config import Config, from_json, to_json
from janus_jax.data import damage, identity, shards
from janus_jax.data.errors import DataError
from janus_jax.types import Specials

FORMAT = 1
PAIRS = ("source", "target")
# Pairs with a second target, which all rows but the AR rows read (distilled text).
TWO_TARGETS = (*PAIRS, "parallel_target")
# Blocks of text: their tokens, and where sentences start in them.
BLOCKS = ("target", "sentences")
# A split of fewer tokens (both sides; 4 bytes each) is kept in memory; a larger one is read example by example.
_IN_MEMORY_TOKENS = 400_000_000
_READ_CHUNK = 4096


def finish(directory: pathlib.Path, config: Config, report: dict[str, Any]) -> None:
    """Writes the settings and the report of a prepared dataset whose other files are there.

    The report gets the checksums of all files but those of the examples, whose format has its own. All files are on the
    disk at the end: a rename of the directory then survives a loss of power.
    """
    files.write_bytes(directory / "config.json", to_json(config).encode())
    report["files"] = {name: damage.checksum(directory / name) for name in _checked_files(directory)}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    files.write_bytes(directory / "report.json", text.encode())
    for path in directory.rglob("*"):
        if path.is_dir():
            files.sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    files.sync_directory(directory)
    directory.chmod(0o755)  # mkdtemp makes it private


def _checked_files(directory: pathlib.Path) -> list[str]:
    texts = sorted(f"text/{path.name}" for path in directory.glob("text/*"))
    return ["config.json", "lengths.npz", "tokenizer.model", *texts]


def write_examples(
    directory: pathlib.Path,
    splits: dict[str, Iterable[shards.Example]],
    description: str,
    columns: tuple[str, ...] = PAIRS,
) -> dict[str, str]:
    """Writes sentence pairs as a TFDS dataset, one shard per split.

    Args:
      directory: gets `janus_pairs/1.0.0/`.
      splits: name -> ids of each example by column, bos and eos included.
      description: one line for the metadata of the dataset.
      columns: PAIRS or TWO_TARGETS.

    Returns:
      The digest of each split's examples, for the report.
    """
    written = {}
    for split, examples in splits.items():
        path = directory / f"{split}.partial"
        written[split] = [shards.write_shard(path, columns, examples)]
    shards.finish(directory, "janus_pairs", columns, written, description)
    return {split: shards.digest(files) for split, files in written.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSplit:
    """One split: lengths in memory, token ids on demand."""

    name: str
    lengths: dict[str, np.ndarray]  # column -> [N] int32; of source and target with bos and eos
    directory: pathlib.Path  # of the TFDS dataset

    def __len__(self) -> int:
        return len(self.target_lengths)

    @property
    def target_lengths(self) -> np.ndarray:
        """[N] int32, bos and eos counted."""
        return self.lengths["target"]

    @property
    def source_lengths(self) -> np.ndarray:
        """[N] int32, bos and eos counted. For blocks of text it is the length of the block: noise never makes a block longer."""
        return self.lengths.get("source", self.target_lengths)

    @property
    def longest_target_lengths(self) -> np.ndarray:
        """[N] int32, of the longer of an example's two targets, or of its only target; bos and eos counted."""
        return np.maximum(self.target_lengths, self.lengths.get("parallel_target", 0))

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        def open_source(directory: pathlib.Path) -> Any:
            return tfds.builder_from_directory(str(directory)).as_data_source(self.name)

        return damage.read_checked(self.directory, open_source)

    @functools.cached_property
    def _flat(self) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
        """column -> (the ids of all examples in a row, the start of each example); None if there are too many."""
        if sum(int(column.sum(dtype=np.int64)) for column in self.lengths.values()) > _IN_MEMORY_TOKENS:
            return None
        parts: dict[str, list[np.ndarray]] = {column: [] for column in self.lengths}
        for row in self.examples():
            for column, ids in parts.items():
                ids.append(row[column])
        return {
            column: (np.concatenate(ids), np.cumsum(self.lengths[column], dtype=np.int64) - self.lengths[column])
            for column, ids in parts.items()
        }

    def load(self) -> None:
        """Reads the token ids into memory now, if there are few enough; worker threads then share them.

        Raises:
          DataError: a file is damaged.
        """
        _ = self._flat

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """The columns of each example in order."""
        for start in range(0, len(self), _READ_CHUNK):
            yield from self._read(range(start, min(start + _READ_CHUNK, len(self))))

    def _read(self, ids: Sequence[int]) -> list[dict[str, np.ndarray]]:
        records = self._records
        try:
            rows = records.__getitems__(list(ids))
        except Exception as error:  # the readers have no error class
            raise damage.unreadable_example(self.directory, self.name, records, ids) from error
        for example_id, row in zip(ids, rows, strict=True):
            if any(len(row[column]) != lengths[example_id] for column, lengths in self.lengths.items()):
                raise damage.damage_error(
                    self.directory, f"example {example_id} of {self.name} is not as long as in lengths.npz"
                )
        return rows

    def columns(self, ids: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The columns of some examples [B], without padding."""
        if self._flat is None:
            return self._read(ids.tolist())
        return [
            {
                column: flat[starts[i] : starts[i] + self.lengths[column][i]]
                for column, (flat, starts) in self._flat.items()
            }
            for i in ids.tolist()
        ]

    def padded(self, side: str, ids: np.ndarray, width: int) -> np.ndarray:
        """Token ids of some examples, padded.

        Args:
          side: a column, for example "source".
          ids: [B] example ids; -1 gives a row of padding.
          width: S or T, at least the longest of them.

        Returns:
          [B, width] int32.
        """
        pad = Specials().pad
        real = ids >= 0
        lengths = np.where(real, self.lengths[side][ids], 0)
        if self._flat is None:
            rows = np.full((len(ids), width), pad, np.int32)
            for row, example in zip(np.flatnonzero(real), self._read(ids[real].tolist()), strict=True):
                rows[row, : lengths[row]] = example[side]
            return rows
        flat, starts = self._flat[side]
        column = np.arange(width)
        inside = column < lengths[:, None]
        return np.where(inside, flat[np.where(inside, starts[ids][:, None] + column, 0)], np.int32(pad))


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A directory that `python -m janus_jax.data` wrote."""

    directory: pathlib.Path
    config: Config  # of the preparation
    report: dict[str, Any]
    tokenizer_bytes: bytes  # for `janus_jax.text.load`
    splits: dict[str, PreparedSplit]

    @classmethod
    def open(cls, directory: str | pathlib.Path, config: Config | None = None) -> "Prepared":
        """Opens a prepared directory.

        Args:
          directory: where `prepare` wrote (`config.data.prepared`).
          config: its text and data settings must be those of the preparation, but with init_from not the tokenizer's; None:
            no check.

        Raises:
          DataError: the directory holds no prepared dataset, or one of another version or other settings, or it is damaged. (Damage
            of a training example shows when the example is read, see `PreparedSplit.load`.)
        """
        directory = pathlib.Path(directory)
        report = read_report(directory)
        if config is not None and (changes := identity.run_changes(report, config, directory)):
            raise DataError(
                f"{directory} was prepared with other settings: {changes}; run `python -m janus_jax.data` with this config and "
                "--overwrite, or choose another data.prepared"
            )
        damage.check_files(directory, report.get("files", {}))
        if report["settings"]["data.source"] == "text":
            name, columns = "janus_text", BLOCKS
        else:
            name, columns = "janus_pairs", tuple(report.get("columns", PAIRS))
        dataset = shards.dataset_directory(directory, name)

        def lengths(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
            with np.load(path) as arrays:
                return {
                    split: {column: arrays[f"{split}_{column}"] for column in columns} for split in report["splits"]
                }

        split_lengths = damage.read_checked(directory / "lengths.npz", lengths)
        prepared = cls(
            directory=directory,
            config=damage.read_checked(
                directory / "config.json", lambda path: from_json(path.read_text("utf-8"), ignore_unknown=True)
            ),
            report=report,
            tokenizer_bytes=damage.read_checked(directory / "tokenizer.model", pathlib.Path.read_bytes),
            splits={split: PreparedSplit(split, columns, dataset) for split, columns in split_lengths.items()},
        )
        prepared._check()
        return prepared

    def _check(self) -> None:
        """Raises DataError for damage that would otherwise stop a run only after many steps."""
        path, size = self.directory / "tokenizer.model", self.report["tokenizer"]["vocab_size"]
        tokenizer = damage.read_checked(path, lambda _: text.load(self.tokenizer_bytes))
        if tokenizer.vocab_size != size:
            raise damage.damage_error(path, f"{tokenizer.vocab_size} tokens, but {size} in report.json")
        for split in self.splits.values():
            damage.check_record_counts(split.directory, split.name, len(split))
        if "valid" in self.splits:  # training first reads it after many steps
            self.splits["valid"].load()
            if self.config.data.source != "text":
                self.text("valid")

    @functools.cached_property
    def contents(self) -> str:
        """Twelve hex digits that change with the tokenizer and with the examples that training reads.

        Of an older dataset only the number, order and lengths of all examples are known.
        """
        digest = hashlib.sha256(self.tokenizer_bytes)
        if "examples" in self.report:
            for name in ("train", "valid"):
                digest.update(f"{name} {self.report['examples'].get(name)} ".encode())
            return digest.hexdigest()[:12]
        for name, split in sorted(self.splits.items()):
            for column, lengths in sorted(split.lengths.items()):
                digest.update(f"{name} {column} {len(lengths)} ".encode() + lengths.astype("<i4").tobytes())
        return digest.hexdigest()[:12]

    @property
    def two_targets(self) -> bool:
        """Whether training examples have a second target, for all rows but the AR rows."""
        return "parallel_target" in self.split("train").lengths

    def split(self, name: str) -> PreparedSplit:
        """One split by name.

        Raises:
          DataError: the dataset has no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.directory} has no {name!r} split, only {', '.join(self.splits)}; set data.{name} and prepare again"
            )
        return self.splits[name]

    def text(self, split: str) -> list[tuple[str, str]]:
        """The cleaned (source, target) sentences of "valid" or "test", in the order of their example ids.

        Raises:
          DataError: the dataset has no such split, it is the training split, whose text is not stored, or a file is damaged.
        """
        if self.config.data.source == "text":
            raise DataError(f"{self.directory} stores no text: it holds blocks of text for denoising")
        if split == "train":
            raise DataError("the text of the train split is not stored in a prepared dataset; read the original files")
        count, sides = len(self.split(split)), []
        for lang in (self.config.data.source_lang, self.config.data.target_lang):
            path = self.directory / "text" / f"{split}.{lang}"
            sides.append(damage.read_checked(path, lambda file: file.read_text("utf-8").split("\n")[:-1]))
            if len(sides[-1]) != count:
                raise damage.damage_error(path, f"{len(sides[-1])} lines, but {count} in lengths.npz")
        return list(zip(*sides, strict=True))


def read_report(directory: pathlib.Path) -> dict[str, Any]:
    """The report of a prepared directory.

    Raises:
      DataError: there is no report, it is damaged, or another version of the package wrote it.
    """
    path = directory / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{directory} is not a prepared dataset (no report.json); run `python -m janus_jax.data` first, with the same --config and with data.prepared={directory}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give read permission") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); remove {directory} and prepare again") from error
    if not isinstance(report, dict) or "format" not in report:
        raise DataError(f"{path}: not the report of a prepared dataset; remove {directory} and prepare again")
    if report["format"] != FORMAT:
        raise DataError(
            f"{directory} has format {report['format']}, this version reads {FORMAT}; remove it and prepare again"
        )
    if wrong := _wrong_entry(report):
        raise DataError(f"{path}: {wrong}; remove {directory} and prepare again, or restore an intact copy")
    return report


def _wrong_entry(report: dict[str, Any]) -> str:
    """What is wrong with the shape of a report; empty: nothing."""
    for name, kind in (
        ("settings", dict),
        ("inputs", dict),
        ("splits", dict),
        ("tokenizer", dict),
        ("fingerprint", str),
    ):
        if not isinstance(report.get(name), kind):
            return f"{name!r} is missing or no {'object' if kind is dict else 'text'}"
    for name in ("content", "files", "examples"):
        sums = report.get(name, {})  # absent from older reports
        if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
            return f"{name!r} is no object of checksums"
    if not isinstance(report["settings"].get("data.source"), str):
        return "'settings' has no 'data.source'"
    if type(report["tokenizer"].get("vocab_size")) is not int:
        return "'tokenizer' has no 'vocab_size'"
    if "train" not in report["splits"]:
        return "'splits' has no 'train'"
    columns = report.get("columns", list(PAIRS))
    if columns not in (list(PAIRS), list(TWO_TARGETS)):
        return f"'columns' is {columns!r}"
    return ""
