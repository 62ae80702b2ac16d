"""A prepared dataset with other targets in its training split: sequence-level knowledge distillation (Kim and Rush 2016).

Legend: N examples of a split.
"""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from janus_jax.data import shards, store
from janus_jax.data.errors import DataError
from janus_jax.data.report import bucket_table, length_histogram


def retarget(
    prepared: store.Prepared, directory: str | pathlib.Path, targets: Sequence[Sequence[int]], origin: dict[str, Any]
) -> dict[str, Any]:
    """Writes a copy of `prepared` with other training targets and the same other splits, tokenizer and settings.

    Args:
      prepared: the original.
      directory: of the copy; must not exist, and appears once it is complete.
      targets: token ids of each training example, in their order, without bos and eos.
      origin: how the targets were generated; stored in the report under "distilled".

    Returns:
      The report.

    Raises:
      DataError: `directory` exists, or the targets are not one for each example, or a target is empty or too long.
    """
    directory = pathlib.Path(directory)
    if directory.exists():
        raise DataError(f"{directory} exists; remove it or name another directory")
    train = prepared.split("train")
    if len(targets) != len(train):
        raise DataError(f"{len(targets)} targets for {len(train)} training examples; one target per example is needed")
    lengths = np.array([len(target) + 2 for target in targets], np.int32)
    longest = prepared.config.data.max_target_length
    if lengths.min() < 3 or lengths.max() > longest:
        bad = int(np.flatnonzero((lengths < 3) | (lengths > longest))[0])
        raise DataError(f"the target of training example {bad} has {lengths[bad] - 2} tokens; 1 to {longest - 2} fit")
    arrays = {
        f"{name}_{side}": getattr(split, f"{side}_lengths")
        for name, split in prepared.splits.items()
        for side in ("source", "target")
    }
    arrays["train_target"] = lengths
    report = json.loads(json.dumps(prepared.report))
    report["distilled"] = {**origin, "from": str(prepared.directory)}
    report["splits"]["train"]["tokens"]["target"] = int(lengths.sum(dtype=np.int64))
    report["splits"]["train"]["longest"]["target"] = int(lengths.max())
    report["splits"]["train"]["length_histogram"]["target"] = length_histogram(lengths)
    report["buckets"] = bucket_table(arrays["train_source"], lengths, prepared.config)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        splits = {
            name: _examples(split, targets if name == "train" else None) for name, split in prepared.splits.items()
        }
        store.write_examples(partial, splits, "token ids with distilled training targets, written by janus_jax")
        np.savez(partial / "lengths.npz", **arrays)
        for name in ("tokenizer.model", "config.json"):
            shutil.copyfile(prepared.directory / name, partial / name)
        if (prepared.directory / "text").is_dir():
            shutil.copytree(prepared.directory / "text", partial / "text")
        (partial / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _examples(split: store.PreparedSplit, targets: Sequence[Sequence[int]] | None) -> Iterator[shards.Example]:
    for number, row in enumerate(split.examples()):
        if targets is not None:
            target = row["target"]
            row = row | {"target": np.array([target[0], *targets[number], target[-1]], np.int32)}
        yield row
