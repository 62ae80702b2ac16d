"""A prepared dataset with generated targets in its training split: sequence-level knowledge distillation (Kim and Rush 2016).

Legend: N examples of a split.
"""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from janus_jax import files
from janus_jax.data import shards, store
from janus_jax.data.errors import DataError
from janus_jax.data.report import bucket_table, length_histogram

# Which rows read the generated targets. all: all rows. parallel: all rows but the AR rows, which keep the original target.
# both: as parallel, and each example is there a second time, with its original target for all rows.
Readers = Literal["all", "parallel", "both"]


def retarget(
    prepared: store.Prepared,
    directory: str | pathlib.Path,
    targets: Sequence[Sequence[int]],
    origin: dict[str, Any],
    readers: Readers = "all",
) -> dict[str, Any]:
    """Writes a copy of `prepared` with generated training targets and the same other splits, tokenizer and settings.

    Args:
      prepared: the original.
      directory: of the copy; must not exist, and appears once it is complete.
      targets: token ids of each training example, in their order, without bos and eos.
      origin: how the targets were generated; stored in the report under "distilled".
      readers: the rows that read the generated targets, see `Readers`.

    Returns:
      The report.

    Raises:
      DataError: `directory` exists, or the targets are not one for each example, or a target is empty or too long, or
        `prepared` has two targets an example already.
    """
    directory = pathlib.Path(directory)
    if directory.exists():
        raise DataError(f"{directory} exists; remove it or name another directory")
    train = prepared.split("train")
    check_one_target(prepared)
    if len(targets) != len(train):
        raise DataError(f"{len(targets)} targets for {len(train)} training examples; one target per example is needed")
    lengths = np.array([len(target) + 2 for target in targets], np.int32)
    longest = prepared.config.data.max_target_length
    if lengths.min() < 3 or lengths.max() > longest:
        bad = int(np.flatnonzero((lengths < 3) | (lengths > longest))[0])
        raise DataError(f"the target of training example {bad} has {lengths[bad] - 2} tokens; 1 to {longest - 2} fit")
    columns = store.PAIRS if readers == "all" else store.TWO_TARGETS
    split_lengths = {name: _lengths(split, lengths, readers) for name, split in prepared.splits.items()}
    report = json.loads(json.dumps(prepared.report))
    report["distilled"] = {**origin, "readers": readers, "from": str(prepared.directory)}
    report["columns"] = list(columns)
    part, new = report["splits"]["train"], split_lengths["train"]
    part["kept"] = len(new["source"])
    for column in columns:
        part["tokens"][column] = int(new[column].sum(dtype=np.int64))
        part["longest"][column] = int(new[column].max())
        part["length_histogram"][column] = length_histogram(new[column])
    longest_target = np.maximum(new["target"], new.get("parallel_target", 0))
    report["buckets"] = bucket_table(new["source"], longest_target, prepared.config)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        splits = {name: _examples(split, targets, readers) for name, split in prepared.splits.items()}
        report["examples"] = store.write_examples(
            partial, splits, "token ids with distilled training targets, written by janus_jax", columns
        )
        np.savez(
            partial / "lengths.npz",
            **{f"{name}_{column}": n for name, part in split_lengths.items() for column, n in part.items()},
        )
        shutil.copyfile(prepared.directory / "tokenizer.model", partial / "tokenizer.model")
        if (prepared.directory / "text").is_dir():
            shutil.copytree(prepared.directory / "text", partial / "text")
        store.finish(partial, prepared.config, report)
        partial.rename(directory)
        files.sync_directory(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def check_one_target(prepared: store.Prepared) -> None:
    """Raises DataError if the training examples have two targets already."""
    if prepared.two_targets:
        raise DataError(
            f"{prepared.directory} has generated targets already; start from the dataset that it was made of"
        )


def _lengths(split: store.PreparedSplit, generated: np.ndarray, readers: Readers) -> dict[str, np.ndarray]:
    """The lengths of a split's examples by column, in the order of `_examples`; `generated`: [N] of the training split."""
    source, target = split.source_lengths, split.target_lengths
    if readers == "all":
        return {"source": source, "target": generated if split.name == "train" else target}
    if split.name != "train":
        return {"source": source, "target": target, "parallel_target": target}
    if readers == "both":
        source, target, generated = np.tile(source, 2), np.tile(target, 2), np.concatenate([target, generated])
    return {"source": source, "target": target, "parallel_target": generated}


def _examples(
    split: store.PreparedSplit, targets: Sequence[Sequence[int]], readers: Readers
) -> Iterator[shards.Example]:
    """The examples of a split; only the training split gets the generated `targets`."""
    training = split.name == "train"
    if readers == "both" and training:
        yield from (row | {"parallel_target": row["target"]} for row in split.examples())
    for number, row in enumerate(split.examples()):
        target = row["target"]
        if training:
            target = np.array([target[0], *targets[number], target[-1]], np.int32)
        yield row | {"target" if readers == "all" else "parallel_target": target}
