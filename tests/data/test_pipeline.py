"""Batches: pure in the step, each example once an epoch, the same rows whatever the processes and accumulation."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from janus_jax import data
from janus_jax.data import store
from janus_jax.types import Batch
from tests.data.conftest import with_data


def with_accumulation(config, accumulation):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=accumulation))


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.shape == y.shape and x.dtype == y.dtype and (x == y).all() for x, y in pairs)


def by_example(batches):
    """example id -> (source, target, masked positions) without padding."""
    rows = {}
    for batch in batches:
        flat = [x.reshape(-1, x.shape[-1]) for x in (batch.source, batch.target, batch.masked)]
        for i, example in enumerate(batch.example_id.reshape(-1).tolist()):
            if example >= 0:
                count = batch.masked_count.reshape(-1)[i]
                source, target = ([t for t in x[i].tolist() if t != 1] for x in flat[:2])
                rows[example] = (source, target, flat[2][i, :count].tolist())
    return rows


def test_batch_at_is_a_pure_function_of_the_step(prepared):
    first, second = (data.TrainBatches(prepared, prepared.config) for _ in range(2))
    steps = [5, first.steps_per_epoch * 3 + 1, 0, 2]
    forward = [first.batch_at(s) for s in steps]
    backward = [second.batch_at(s) for s in steps[::-1]][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not equal(first.batch_at(0), first.batch_at(first.steps_per_epoch))


@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_each_example_once_an_epoch(prepared, accumulation):
    config = with_accumulation(prepared.config, accumulation)
    batches = data.TrainBatches(prepared, config)
    orders = []
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        ids = [batches.batch_at(s).example_id for s in steps]
        seen = collections.Counter(np.concatenate([i.reshape(-1) for i in ids]).tolist())
        seen.pop(-1, None)
        assert seen == dict.fromkeys(range(700), 1)
        orders.append([i.tolist() for i in ids])
    assert orders[0] != orders[1]


def test_who_shares_a_batch_changes_with_the_epoch_and_the_seed(prepared):
    def groups(epoch, **changes):
        batches = data.TrainBatches(prepared, with_data(prepared.config, **changes))
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        return {frozenset(rows.tolist()) for step in steps for rows in batches.batch_at(step).example_id}

    first = groups(0)
    assert groups(0) == first
    assert first.isdisjoint(groups(1))
    assert first.isdisjoint(groups(0, seed=1))


def test_rows_hold_the_data_and_valid_masks(prepared):
    batches = data.TrainBatches(prepared, prepared.config)
    split = prepared.split("train")
    for step in range(batches.steps_per_epoch):
        batch = batches.batch_at(step)
        assert isinstance(batch, Batch)
        assert batch.source.shape[0] == 2
        assert batch.source.shape[:2] == batch.target.shape[:2] == batch.example_id.shape
        assert all(x.dtype == np.int32 for x in jax.tree.leaves(batch))
        real = batch.example_id >= 0
        assert (batch.source[~real] == 1).all()
        assert (batch.target[~real] == 1).all()
        assert (batch.masked_count[~real] == 0).all()
        assert (batch.masked_count[real] >= 1).all()
        ids = batch.example_id[real]
        assert ((batch.source[real] != 1).sum(axis=-1) == split.source_lengths[ids]).all()
        assert ((batch.target[real] != 1).sum(axis=-1) == split.target_lengths[ids]).all()
        assert (batch.target[real][:, 0] == 0).all()
        assert (np.take_along_axis(batch.target[real], split.target_lengths[ids][:, None] - 1, axis=1) == 2).all()
        for positions, count, length in zip(
            batch.masked[real], batch.masked_count[real], split.target_lengths[ids], strict=True
        ):
            assert (np.diff(positions[:count]) > 0).all()
            assert positions[0] >= 1
            assert positions[:count].max() <= length - 2
            assert (positions[count:] == 0).all()


def test_batches_of_a_bucket_are_evenly_filled(prepared):
    batches = data.TrainBatches(prepared, prepared.config)
    sizes = collections.defaultdict(set)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch_at(step)
        sizes[batch.source.shape, batch.target.shape] |= set((batch.example_id >= 0).sum(axis=1).tolist())
    assert len(sizes) == 3
    assert all(max(s) - min(s) <= 1 for s in sizes.values())


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_rows_of_the_same_batches(prepared, count):
    whole = data.TrainBatches(prepared, prepared.config)
    parts = [data.TrainBatches(prepared, prepared.config, i, count) for i in range(count)]
    for step in (0, 3, whole.steps_per_epoch + 1):
        joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(p.batch_at(step) for p in parts))
        assert equal(joined, whole.batch_at(step))
    with pytest.raises(data.DataError, match="batch_multiple"):
        data.TrainBatches(prepared, prepared.config, 0, 3)


def test_masks_do_not_depend_on_batching(prepared):
    other = with_accumulation(with_data(prepared.config, tokens_per_batch=2048, buckets=1, batch_multiple=16), 1)
    epochs = []
    for config in (prepared.config, other):
        batches = data.TrainBatches(prepared, config)
        epochs.append(by_example(batches.batch_at(s) for s in range(batches.steps_per_epoch)))
    assert epochs[0] == epochs[1]


def test_seed_and_sampler_change_the_masks(prepared):
    def masks(config):
        batches = data.TrainBatches(prepared, config)
        return {k: v[2] for k, v in by_example(batches.batch_at(s) for s in range(batches.steps_per_epoch)).items()}

    base = masks(prepared.config)
    for change in ({"seed": 1}, {"mask_sampler": "uniform"}, {"mask_ratio": 0.3}, {"mask_suffix": 0.3}):
        assert masks(with_data(prepared.config, **change)) != base


@pytest.mark.parametrize("workers", [1, 3])
def test_iterator_gives_the_steps_in_order(prepared, workers):
    config = with_data(prepared.config, workers=workers)
    batches = data.TrainBatches(prepared, config)
    steps = list(data.train_batches(prepared, config, 4, 30))
    assert len(steps) == 26
    assert all(equal(b, batches.batch_at(4 + i)) for i, b in enumerate(steps))
    assert list(data.train_batches(prepared, config, 4, 4)) == []


def test_error_in_a_worker_reaches_the_consumer(prepared, monkeypatch):
    def broken(*_):
        raise data.DataError("example 7 is broken")

    iterator = data.train_batches(prepared, prepared.config, 0, 10)
    monkeypatch.setattr(data.TrainBatches, "batch_at", broken)
    with pytest.raises(data.DataError, match="example 7 is broken"):
        list(iterator)


def test_large_splits_are_read_from_disk(prepared, monkeypatch):
    batches = data.TrainBatches(prepared, prepared.config)
    monkeypatch.setattr(store, "_IN_MEMORY_TOKENS", 0)
    again = data.Prepared.open(prepared.directory)
    on_disk = data.TrainBatches(again, prepared.config)
    assert again.split("train")._flat is None
    assert all(equal(batches.batch_at(s), on_disk.batch_at(s)) for s in range(5))
    assert len(list(data.train_batches(again, prepared.config, 0, 5))) == 5


def test_eval_batches_visit_all_in_fixed_order_with_fixed_masks(prepared):
    first, second = (list(data.eval_batches(prepared, prepared.config)) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].source.ndim == 2
    assert sorted(by_example(first)) == list(range(60))
    halves = [list(data.eval_batches(prepared, prepared.config, "test", i, 2)) for i in range(2)]
    whole = list(data.eval_batches(prepared, prepared.config, "test"))
    for joined, left, right in zip(whole, *halves, strict=True):
        assert equal(joined, jax.tree.map(lambda *x: np.concatenate(x), left, right))
    with pytest.raises(data.DataError, match="no 'dev' split, only train, valid, test"):
        data.eval_batches(prepared, prepared.config, "dev")
