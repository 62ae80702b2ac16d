"""The bucket plan: coverage, shapes, optimal bounds, errors."""

import itertools

import numpy as np
import pytest

from janus_jax.config import DataConfig
from janus_jax.data import DataError, buckets
from janus_jax.data.corruption import make_sampler


def lengths(count, seed=0, high=60):
    rng = np.random.default_rng(seed)
    return np.clip(rng.poisson(15, (2, count)) + rng.integers(0, 8, (2, count)), 3, high).astype(np.int32)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_example_is_in_one_bucket_that_holds_it(accumulation):
    source, target = lengths(3000)
    config = DataConfig(tokens_per_batch=1024, buckets=5)
    plan = buckets.plan(source, target, config, accumulation)
    assert len(plan) == 5
    assert sorted(itertools.chain(*(b.examples for b in plan))) == list(range(3000))
    for bucket in plan:
        # Shapes are as tight as the members allow
        assert bucket.source_length == source[bucket.examples].max()
        assert bucket.target_length == target[bucket.examples].max()
        assert bucket.masked == make_sampler(config).max_masked(bucket.target_length)
        assert bucket.rows % 8 == 0
        assert bucket.rows * max(bucket.source_length, bucket.target_length) <= 1024
        assert bucket.batches % accumulation == 0
        assert bucket.batches * bucket.rows >= len(bucket.examples)


def test_more_buckets_than_sizes_are_as_many_as_sizes():
    sizes = np.array([5, 9, 9, 20])
    plan = buckets.plan(sizes, sizes, DataConfig(buckets=2**31 - 1, batch_multiple=1))
    assert [bucket.source_length for bucket in plan] == [5, 9, 20]


def padded_cells(source, target, bounds):
    index = np.searchsorted(bounds, np.maximum(source, target))
    groups = [index == k for k in range(len(bounds)) if (index == k).any()]
    return sum(int(g.sum()) * int(source[g].max() + target[g].max()) for g in groups)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bounds_are_the_best_of_all(count):
    source, target = lengths(150, seed=3, high=25)
    sizes = np.unique(np.maximum(source, target))
    best = min(
        padded_cells(source, target, [*inner, sizes[-1]]) for inner in itertools.combinations(sizes[:-1], count - 1)
    )
    bounds = buckets._best_bounds(source, target, count)
    assert padded_cells(source, target, bounds) == best


def test_more_buckets_never_pad_more_and_surplus_buckets_vanish():
    source, target = lengths(500)
    costs = [padded_cells(source, target, buckets._best_bounds(source, target, k)) for k in range(1, 8)]
    assert costs == sorted(costs, reverse=True)
    assert len(buckets.plan(source[:2], target[:2], DataConfig(buckets=9))) <= 2


def test_configured_bounds_are_used():
    source, target = lengths(500)
    plan = buckets.plan(source, target, DataConfig(buckets=(12, 20, 64)))
    tops = [np.maximum(source, target)[b.examples].max() for b in plan]
    assert tops[0] <= 12 < tops[1] <= 20 < tops[2]


def test_small_bucket_gets_no_needless_rows():
    plan = buckets.plan(np.full(10, 5), np.full(10, 5), DataConfig(tokens_per_batch=4096, buckets=1))
    assert (plan[0].rows, plan[0].batches) == (16, 1)


def test_errors_name_the_fix():
    source, target = lengths(100)
    with pytest.raises(DataError, match=r"tokens_per_batch: 64 cannot hold 8 rows .* raise it to \d+"):
        buckets.plan(source, target, DataConfig(tokens_per_batch=64, buckets=1))
    with pytest.raises(DataError, match="last bound 12 is below the longest"):
        buckets.plan(source, target, DataConfig(buckets=(8, 12)))
    with pytest.raises(DataError, match="no examples"):
        buckets.plan(source[:0], target[:0], DataConfig())
