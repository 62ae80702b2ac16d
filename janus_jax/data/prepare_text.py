"""Prepares plain text for denoising: several processes pack clean documents into blocks, one shard per task.

Documents are read once, from first to last, and divided into tasks of a fixed size. So the result is the same with any number
of processes, and memory holds a few tasks, whatever the size of the corpus (and the `text.train_lines` documents that a
tokenizer is trained on).

Legend: N blocks of a split, L tokens of a block.
"""

import collections
import concurrent.futures
import multiprocessing
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from janus_jax import text
from janus_jax.config import Config
from janus_jax.data import blocks, clean, shards, sources, store
from janus_jax.data.errors import DataError
from janus_jax.data.report import length_histogram

_TASK = 1 << 24  # characters of a shard's documents
_Packed = tuple[shards.Shard, dict[str, np.ndarray], int]  # file; lengths of each column; unknown tokens


def sample_lines(source: sources.SplitSource, limit: int) -> list[str]:
    """At most `limit` clean documents, evenly spread over the split, in one pass: every k-th, k a power of two."""
    chosen: list[str] = []
    step = 1
    for number, (_, document) in enumerate(clean.clean_documents(source, clean.FilterStats())):
        if number % step:
            continue
        chosen.append(document)
        if len(chosen) > limit:
            chosen, step = chosen[::2], 2 * step
    return chosen


def check_hold_out(held_out: sources.SplitSource, every: int) -> None:
    """Raises DataError if every `every`-th document is none: the text is too small for it."""
    if next(clean.clean_documents(held_out, clean.FilterStats()), None) is None:
        raise DataError(
            f"config.data.hold_out: {every}, but the text has fewer documents, so none is held out for validation; lower it, or "
            "set it to 0 for no validation"
        )


def write_blocks(
    directory: pathlib.Path,
    config: Config,
    splits: dict[str, sources.SplitSource],
    stats: dict[str, clean.FilterStats],
    tokenizer: text.Tokenizer,
    processes: int,
) -> tuple[dict[str, np.ndarray], int, dict[str, str]]:
    """Writes every split's blocks as shards of one dataset.

    Args:
      directory: gets the dataset `janus_text`.
      config: data.max_target_length is L.
      splits: documents of each split.
      stats: of each split; count every document.
      tokenizer: of the blocks.
      processes: number of processes that tokenize; 1: only this one.

    Returns:
      "{split}_{column}" -> lengths [N] int32; the number of unknown tokens; the digest of each split's examples.

    Raises:
      DataError: no document of a split is left.
    """
    lengths, files, unknown = {}, {}, 0
    with _TaskRunner(processes) as run:
        for split, source in splits.items():
            tasks = (
                (
                    directory / f"{split}-{number}.partial",
                    tokenizer.to_bytes(),
                    documents,
                    config.data.max_target_length,
                )
                for number, documents in enumerate(_tasks(source, stats[split]))
            )
            packed = [result for result in run(tasks) if len(result[1]["target"])]
            if not packed:
                raise DataError(
                    f"config.data.{split}: no document of the {split} split is left of {stats[split].read}; check the files"
                )
            files[split] = [shard for shard, *_ in packed]
            unknown += sum(count for *_, count in packed)
            for column in store.BLOCKS:
                lengths[f"{split}_{column}"] = np.concatenate([columns[column] for _, columns, _ in packed])
    shards.finish(directory, "janus_text", store.BLOCKS, files, "blocks of token ids, prepared by janus_jax")
    return lengths, unknown, {split: shards.digest(written) for split, written in files.items()}


def split_report(split: str, stats: clean.FilterStats, lengths: dict[str, np.ndarray]) -> dict[str, Any]:
    """The entry of a split in the report."""
    sizes = lengths[f"{split}_target"]
    return {
        "read": stats.read,
        "kept": stats.kept,
        "dropped": stats.dropped,
        "blocks": len(sizes),
        "tokens": {"target": int(sizes.sum(dtype=np.int64))},
        "longest": {"target": int(sizes.max())},
        "length_histogram": {"target": length_histogram(sizes)},
    }


def _tasks(source: sources.SplitSource, stats: clean.FilterStats) -> Iterator[list[str]]:
    """Documents in lists of about `_TASK` characters."""
    documents: list[str] = []
    size = 0
    for _, document in clean.clean_documents(source, stats):
        stats.kept += 1
        documents.append(document)
        size += len(document)
        if size >= _TASK:
            yield documents
            documents, size = [], 0
    if documents:
        yield documents


class _TaskRunner:
    """Runs `_pack` over tasks and gives the results in order; a few tasks run ahead. One process runs them by itself."""

    def __init__(self, processes: int):
        self._processes = processes
        self._executor = None

    def __enter__(self) -> Any:
        if self._processes == 1:
            return lambda tasks: map(_pack, tasks)
        # Spawned and not forked: a fork of a process with threads, such as those of JAX, may hang.
        context = multiprocessing.get_context("spawn")
        self._executor = concurrent.futures.ProcessPoolExecutor(self._processes, mp_context=context)
        return self._run

    def __exit__(self, *_: Any) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def _run(self, tasks: Iterator[Any]) -> Iterator[_Packed]:
        running: collections.deque = collections.deque()
        for task in tasks:
            running.append(self._executor.submit(_pack, task))
            # Reading waits for packing, so that few texts are in memory.
            if len(running) > 2 * self._processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _pack(task: tuple[pathlib.Path, bytes, list[str], int]) -> _Packed:
    """Packs one task's documents and writes their shard."""
    path, tokenizer_bytes, documents, length = task
    tokenizer = text.load(tokenizer_bytes)
    lengths: dict[str, list[int]] = {column: [] for column in store.BLOCKS}
    unknown = 0

    def counted() -> Iterator[shards.Example]:
        nonlocal unknown
        for example in blocks.pack(documents, tokenizer, length):
            for column, values in example.items():
                lengths[column].append(len(values))
            unknown += int((example["target"] == tokenizer.specials.unk).sum())
            yield example

    shard = shards.write_shard(path, store.BLOCKS, counted())
    return shard, {column: np.array(values, np.int32) for column, values in lengths.items()}, unknown
