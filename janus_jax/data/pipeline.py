"""Batches as a pure function of the step: shapes, order and masks depend on (seed, step) alone.

Legend: A micro-batches of a step, B rows, S source length, T target length, M masked tokens at most, N examples.
"""

import dataclasses
import functools
from collections.abc import Iterator

import grain
import jax
import numpy as np

from janus_jax import text
from janus_jax.config import Config
from janus_jax.data import buckets, corruption
from janus_jax.data.denoising import noise
from janus_jax.data.errors import DataError
from janus_jax.data.store import Prepared, PreparedSplit
from janus_jax.types import Batch, Specials

# The epoch number for evaluation masks; training never uses it.
_EVALUATION = -1
_PREFETCH = 16  # number of steps whose batches are built in advance


class TrainBatches:
    """The training batches of one process.

    An epoch visits each example once. The examples of a bucket are shuffled and divided evenly among its
    micro-batches. Each step reads A micro-batches of one bucket. The steps of all buckets are shuffled together. Both
    orders depend on (seed, epoch) alone.

    Args:
      prepared: the dataset.
      config: batching, masking and accumulation settings.
      process_index, process_count: this process gets a contiguous share of the rows of every batch.

    Raises:
      DataError: the rows of a batch cannot be divided evenly among processes, or no plan exists (see `buckets.plan`).
    """

    def __init__(self, prepared: Prepared, config: Config, process_index: int = 0, process_count: int = 1):
        self._split = prepared.split("train")
        self._config = config
        self._builder = _BatchBuilder(prepared, self._split, config)
        self._accumulation = config.train.accumulation
        self.buckets = buckets.plan(
            self._split.source_lengths, self._split.longest_target_lengths, config.data, self._accumulation
        )
        self._shares = [_share(bucket, process_index, process_count) for bucket in self.buckets]
        # The steps of an epoch before shuffling: (index of the bucket, first of its A micro-batches).
        self._steps = np.array(
            [(k, first) for k, b in enumerate(self.buckets) for first in range(0, b.batches, self._accumulation)]
        )
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    @property
    def steps_per_epoch(self) -> int:
        """The number of training steps that read each example once."""
        return len(self._steps)

    def batch_at(self, step: int) -> Batch:
        """This process's share of the batch of `step` (the first step is 0).

        The numpy arrays have the leading axes [A, B / process_count].
        """
        epoch, slot = divmod(step, self.steps_per_epoch)
        steps, members = self._order(epoch)
        index, first = self._steps[steps[slot]]
        bucket = self.buckets[index]
        ids = np.concatenate(
            [_rows(members[index], i, bucket)[self._shares[index]] for i in range(first, first + self._accumulation)]
        )
        flat = self._builder.batch(bucket, ids, epoch)
        shape = (self._accumulation, -1)
        return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), flat)

    def _make_order(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Permutation of the epoch's steps, and each bucket's examples in shuffled order."""
        seed = self._config.data.seed
        members = [_generator(seed, epoch, 1 + k).permutation(bucket.examples) for k, bucket in enumerate(self.buckets)]
        return _generator(seed, epoch, 0).permutation(len(self._steps)), members


def train_batches(
    prepared: Prepared,
    config: Config,
    start_step: int,
    end_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches of the steps in [start_step, end_step), built in advance by `config.data.workers` threads.

    Returns:
      An iterator of `Batch` of numpy arrays with leading axes [A, B / process_count]. It raises errors of the threads.

    Raises:
      DataError: see `TrainBatches`.
    """
    batches = TrainBatches(prepared, config, process_index, process_count)
    if start_step >= end_step:
        return iter(())
    prepared.split("train").load()
    options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=_PREFETCH)
    dataset = grain.MapDataset.range(start_step, end_step).map(lambda step: batches.batch_at(int(step)))
    return iter(dataset.to_iter_dataset(options))


def eval_batches(
    prepared: Prepared, config: Config, split: str = "valid", process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every example of a split once, always in the same order and with the same masks.

    Returns:
      An iterator of `Batch` of numpy arrays with leading axis [B / process_count] (no accumulation axis).

    Raises:
      DataError: the split does not exist; other reasons: see `TrainBatches`.
    """
    examples = prepared.split(split)
    try:
        plan = buckets.plan(examples.source_lengths, examples.target_lengths, config.data)
    except DataError as error:
        raise DataError(f"the batches of the {split} split: {error}") from error
    shares = [_share(bucket, process_index, process_count) for bucket in plan]
    builder = _BatchBuilder(prepared, examples, config)
    return (
        builder.batch(bucket, _rows(bucket.examples, index, bucket)[share], _EVALUATION)
        for bucket, share in zip(plan, shares, strict=True)
        for index in range(bucket.batches)
    )


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Random numbers for the order of an epoch. The counters differ from those of the masks (`row_uniforms`)."""
    key = np.array([seed % 2**64, epoch % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 1 + stream, 0]))


def _share(bucket: buckets.Bucket, process_index: int, process_count: int) -> slice:
    """The slice of a batch's rows that this process builds."""
    if bucket.rows % process_count:
        raise DataError(
            f"config.data.batch_multiple: batches of {bucket.rows} rows cannot be divided evenly among "
            f"{process_count} processes; make it a multiple of {process_count}"
        )
    rows = bucket.rows // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _rows(members: np.ndarray, index: int, bucket: buckets.Bucket) -> np.ndarray:
    """Example ids [B] of the micro-batch `index` of a bucket; -1: an empty row.

    Micro-batches of a bucket differ by at most 1 in their number of examples.
    """
    count = len(members)
    chosen = members[index * count // bucket.batches : (index + 1) * count // bucket.batches]
    ids = np.full(bucket.rows, -1, np.int64)
    ids[: len(chosen)] = chosen
    return ids


class _BatchBuilder:
    """Builds batches of a split's examples: sentence pairs with masked targets, or blocks of plain text with noise."""

    def __init__(self, prepared: Prepared, split: PreparedSplit, config: Config):
        self._split, self._data = split, config.data
        self._denoise = "sentences" in split.lengths
        # The other splits hold each target twice, so that one format serves all. Their batches need it once.
        self._second_target = split.name == "train" and prepared.two_targets
        if self._denoise:
            tokenizer = text.load(prepared.tokenizer_bytes)
            self._specials, self._word_starts = tokenizer.specials, tokenizer.word_starts()

    def batch(self, bucket: buckets.Bucket, ids: np.ndarray, epoch: int) -> Batch:
        """The batch of the examples `ids` [B] (-1: an empty row), padded to the bucket's shape and masked."""
        rows = np.flatnonzero(ids >= 0)
        empty = Batch(
            source=np.full((len(ids), bucket.source_length), Specials().pad, np.int32),
            target=np.full((len(ids), bucket.target_length), Specials().pad, np.int32),
            masked=np.zeros((len(ids), bucket.masked), np.int32),
            masked_count=np.zeros(len(ids), np.int32),
            example_id=ids.astype(np.int32),
        )
        if self._denoise:
            self._fill_noised(empty, rows, epoch)
            return empty
        if len(rows):
            empty.masked[rows], empty.masked_count[rows] = self._masks(ids[rows], epoch, bucket.masked)
        widths = {"source": bucket.source_length, "target": bucket.target_length}
        if self._second_target:
            widths["parallel_target"] = bucket.target_length
        sides = {side: self._split.padded(side, ids, width) for side, width in widths.items()}
        return dataclasses.replace(empty, **sides)

    def _masks(self, ids: np.ndarray, epoch: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Masked positions [B, M] and counts [B] of sentence pairs."""
        lengths = self._split.lengths["parallel_target" if self._second_target else "target"][ids]
        sampler = corruption.make_sampler(self._data)
        uniforms = corruption.row_uniforms(self._data.seed, epoch, ids, lengths, sampler.uniforms)
        return corruption.mask_positions(sampler.masks(uniforms, lengths), width)

    def _fill_noised(self, batch: Batch, rows: np.ndarray, epoch: int) -> None:
        """Fills the rows of an empty batch with noised blocks."""
        ids = batch.example_id[rows]
        generators = corruption.row_generators(self._data.seed, epoch, ids)
        for row, block, rng in zip(rows.tolist(), self._split.columns(ids), generators, strict=True):
            noised = noise(rng, block["target"], self._word_starts, block["sentences"], self._data, self._specials)
            batch.target[row, : len(block["target"])] = block["target"]
            batch.source[row, : len(noised.source)] = noised.source
            batch.masked[row, : len(noised.masked)] = noised.masked
            batch.masked_count[row] = len(noised.masked)
