"""Prepares plain text for denoising: clean documents, packed into blocks by several processes, a shard a task.

Documents are read once, from first to last, and handed out in tasks of a fixed size, so that the result is the same with
any number of processes, and memory holds a few tasks however large the corpus is (and, where a tokenizer is trained, its
`text.train_lines` documents).

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
_Packed = tuple[pathlib.Path, dict[str, np.ndarray], int]  # file; lengths of each column; unknown tokens


def sample_lines(source: sources.SplitSource, most: int) -> list[str]:
    """At most `most` clean documents, evenly spread over the split, in one pass: every k-th, k a power of two."""
    chosen: list[str] = []
    step = 1
    for number, (_, document) in enumerate(clean.clean_documents(source, clean.Account())):
        if number % step:
            continue
        chosen.append(document)
        if len(chosen) > most:
            chosen, step = chosen[::2], 2 * step
    return chosen


def write_blocks(
    directory: pathlib.Path,
    config: Config,
    given: dict[str, sources.SplitSource],
    accounts: dict[str, clean.Account],
    tokenizer: text.Tokenizer,
    processes: int,
) -> tuple[dict[str, np.ndarray], int]:
    """Writes every split's blocks as shards of one dataset.

    Args:
      directory: gets the dataset `janus_text`.
      config: data.max_target_length is L.
      given: documents of each split.
      accounts: are told of every document.
      tokenizer: of the blocks.
      processes: how many tokenize; 1: this one.

    Returns:
      "{split}_{column}" -> lengths [N] int32, and how many tokens are unknown.

    Raises:
      DataError: nothing is left of a split.
    """
    lengths, files, unknown = {}, {}, 0
    with _pool(processes) as run:
        for split, source in given.items():
            tasks = (
                (
                    directory / f"{split}-{number}.partial",
                    tokenizer.to_bytes(),
                    documents,
                    config.data.max_target_length,
                )
                for number, documents in enumerate(_tasks(source, accounts[split]))
            )
            packed = [one for one in run(tasks) if len(one[1]["target"])]
            if not packed:
                fix = "check the files"
                if split == "valid" and not config.data.valid:
                    fix = f"lower config.data.hold_out ({config.data.hold_out}), or set it to 0"
                raise DataError(
                    f"config.data.{split}: no document of the {split} split is left of {accounts[split].read}; {fix}"
                )
            files[split] = [(path, len(columns["target"])) for path, columns, _ in packed]
            unknown += sum(count for *_, count in packed)
            for column in store.BLOCKS:
                lengths[f"{split}_{column}"] = np.concatenate([columns[column] for _, columns, _ in packed])
    shards.finish(directory, "janus_text", store.BLOCKS, files, "blocks of token ids, prepared by janus_jax")
    return lengths, unknown


def split_report(split: str, account: clean.Account, lengths: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the report says of a split."""
    sizes = lengths[f"{split}_target"]
    return {
        "read": account.read,
        "kept": account.kept,
        "dropped": account.dropped,
        "blocks": len(sizes),
        "tokens": {"target": int(sizes.sum(dtype=np.int64))},
        "longest": {"target": int(sizes.max())},
        "length_histogram": {"target": length_histogram(sizes)},
    }


def _tasks(source: sources.SplitSource, account: clean.Account) -> Iterator[list[str]]:
    """Documents in lists of about `_TASK` characters."""
    documents: list[str] = []
    size = 0
    for _, document in clean.clean_documents(source, account):
        account.kept += 1
        documents.append(document)
        size += len(document)
        if size >= _TASK:
            yield documents
            documents, size = [], 0
    if documents:
        yield documents


class _pool:
    """Runs `_pack` over tasks, a few ahead, results in order; in this process where one is enough."""

    def __init__(self, processes: int):
        self._processes = processes
        self._executor = None

    def __enter__(self) -> Any:
        if self._processes == 1:
            return lambda tasks: map(_pack, tasks)
        # Spawned: a fork of a process with threads (JAX has some) may hang.
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
            # Reading waits for packing, so that text does not pile up.
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

    def watched() -> Iterator[shards.Example]:
        nonlocal unknown
        for example in blocks.pack(documents, tokenizer, length):
            for column, values in example.items():
                lengths[column].append(len(values))
            unknown += int((example["target"] == tokenizer.specials.unk).sum())
            yield example

    shards.write_shard(path, store.BLOCKS, watched())
    return path, {column: np.array(values, np.int32) for column, values in lengths.items()}, unknown
