"""Mask samplers: against a plain reference, figures of docs/method.md, section 4, bounds and independence of rows."""

import math
import typing

import numpy as np
import pytest

from janus_jax.config import DataConfig, MaskSampler
from janus_jax.data import corruption


def reference_span_mask(rng, length, ratio, mean):
    """docs/method.md, section 4 word for word, one span at a time, with another source of randomness."""
    budget = math.ceil(ratio * length - 1e-9)
    spans = []
    while sum(spans) < budget:
        spans.append(min(rng.poisson(mean), budget - sum(spans)))
    starts = rng.permutation(length)
    masked = set()
    for start, span in zip(starts, spans, strict=False):
        if span and start + span > length:
            span = 1
        masked.update(range(start, start + span))
    masked -= {0, length - 1}
    if not masked and length > 2:
        masked = {int(rng.integers(1, length - 1))}
    return sorted(masked)


def many(length, rows, seed=0, ratio=0.7, mean=2.0):
    uniforms = np.random.default_rng(seed).random((rows, 2 * length + 1))
    return corruption.span_masks(uniforms, np.full(rows, length), ratio, mean)


def test_samplers_are_those_of_the_config():
    assert set(corruption.SAMPLERS) == set(typing.get_args(MaskSampler))


@pytest.mark.parametrize(("length", "share"), [(27, 0.52), (10, 0.47)])
def test_share_of_masked_tokens(length, share):
    # docs/method.md, section 4: "about 52% at T=27 and 47% at T=10"
    masks = many(length, 20_000)
    assert masks.sum(axis=1).mean() / length == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(("length", "ratio", "mean"), [(4, 0.7, 2.0), (10, 0.7, 2.0), (27, 0.7, 2.0), (15, 0.3, 3.5)])
def test_distribution_equals_the_reference(length, ratio, mean):
    """Counts, positions and neighbours agree within five standard errors of 20,000 against 5,000 draws."""
    rng = np.random.default_rng(1)
    expected = np.zeros((5000, length), bool)
    for row in expected:
        row[reference_span_mask(rng, length, ratio, mean)] = True
    actual = many(length, 20_000, 2, ratio, mean)

    def close(a, b):
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b)) + 1e-4
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5 * error).all()

    close(actual.astype(float), expected.astype(float))
    close((actual[:, 1:] & actual[:, :-1]).astype(float), (expected[:, 1:] & expected[:, :-1]).astype(float))
    levels = np.arange(length)
    close(
        (actual.sum(1)[:, None] == levels).astype(float),
        (expected.sum(1)[:, None] == levels).astype(float),
    )


def test_poisson_tail_is_cut_and_long_spans_work():
    cdf = corruption._span_cdf(2.0)
    assert len(cdf) == 14  # p(13) = 1.8e-7 stays, p(14) = 2.5e-8 goes
    assert cdf[0] == pytest.approx(math.exp(-2), abs=1e-6)
    assert many(60, 50, mean=30.0).any(axis=1).all()


@pytest.mark.parametrize("sampler", corruption.SAMPLERS)
@pytest.mark.parametrize(("ratio", "suffix"), [(0.1, 0.0), (0.5, 0.3), (0.7, 0.0), (1.0, 0.0)])
def test_bound_holds_and_ends_are_spared(sampler, ratio, suffix):
    chosen = corruption.make_sampler(DataConfig(mask_sampler=sampler, mask_ratio=ratio, mask_suffix=suffix))
    for length in (2, 3, 4, 5, 7, 10, 19):
        lengths = np.full(3000, length)
        uniforms = np.random.default_rng(length).random((3000, chosen.uniforms(length)))
        masks = chosen.masks(uniforms, lengths)
        counts = masks.sum(axis=1)
        assert not masks[:, 0].any()
        assert not masks[:, -1].any()
        assert counts.max() <= chosen.max_masked(length)
        assert (counts.min() > 0) == (length > 2)


def test_span_bound_is_reached():
    most = corruption.make_sampler(DataConfig()).max_masked
    for length in (3, 4, 6, 9):
        assert many(length, 200_000).sum(axis=1).max() == most(length)
    # Every T: uniforms built so that all spans have length 1 and start at 1, 2, ...
    for length in range(3, 80):
        cdf = corruption._span_cdf(2.0)
        ones = np.full(length, (cdf[0] + cdf[1]) / 2)
        keys = np.where(np.arange(length) == 0, 0.99, np.arange(length) / (length + 1))
        masks = corruption.span_masks(np.concatenate([ones, keys, [0.5]])[None], np.array([length]), 0.7, 2.0)
        assert masks.sum() == most(length)


def test_bound_grows_with_length():
    for sampler, suffix in [("span", 0.0), ("uniform", 0.0), ("span", 0.1)]:
        most = corruption.make_sampler(DataConfig(mask_sampler=sampler, mask_suffix=suffix)).max_masked
        bounds = [most(length) for length in range(2, 300)]
        assert bounds == sorted(bounds)
        assert bounds[:3] == [0, 1, 2]
    assert (
        corruption.make_sampler(DataConfig(mask_ratio=0.55)).max_masked(100) == 55
    )  # 0.55 * 100 is 55.00000000000001 in floats


def test_suffix_masks_are_suffixes_of_which_long_ones_are_frequent():
    masks = corruption.suffix_masks(np.random.default_rng(0).random(40_000), np.full(40_000, 11))
    starts = masks.argmax(axis=1)
    assert (masks == (np.arange(11) >= starts[:, None]) & (np.arange(11) < 10)).all()
    # floor(9 u^2) = k for sqrt(k / 9) <= u < sqrt((k + 1) / 9)
    expected = np.diff(np.sqrt(np.arange(10) / 9))
    assert np.bincount(starts, minlength=10)[1:] / 40_000 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("sampler", corruption.SAMPLERS)
def test_a_share_of_suffix_masks_leaves_the_other_rows_as_they_were(sampler):
    ids, lengths = np.arange(4000), np.random.default_rng(0).integers(3, 30, 4000)
    chosen = [corruption.make_sampler(DataConfig(mask_sampler=sampler, mask_suffix=share)) for share in (0.0, 0.25)]
    plain, mixed = (c.masks(corruption.row_uniforms(0, 0, ids, lengths, c.uniforms), lengths) for c in chosen)
    changed = (plain != mixed).any(axis=1)
    assert 0.15 < changed.mean() < 0.26  # a quarter, less those that were the same suffix anyway
    inner = (np.arange(mixed.shape[1]) > 0) & (np.arange(mixed.shape[1]) < lengths[:, None] - 1)
    after_first = np.arange(mixed.shape[1]) >= mixed.argmax(axis=1)[:, None]
    assert (mixed == (inner & after_first))[changed].all()


def test_uniform_sampler_counts_and_positions():
    masks = corruption.uniform_masks(np.random.default_rng(0).random((40_000, 8)), np.full(40_000, 7))
    counts = np.bincount(masks.sum(axis=1), minlength=7) / 40_000
    assert counts[0] == counts[6] == 0
    assert counts[1:6] == pytest.approx([0.2] * 5, abs=0.01)
    assert masks[:, 1:6].mean(axis=0) == pytest.approx([0.6] * 5, abs=0.01)


@pytest.mark.parametrize("sampler", corruption.SAMPLERS)
def test_row_depends_on_its_key_alone(sampler):
    ids, lengths = np.array([5, 17, 3, 900]), np.array([12, 30, 3, 7])

    def masks(order, seed=1, epoch=2):
        chosen = corruption.make_sampler(DataConfig(mask_sampler=sampler, mask_suffix=0.3))
        uniforms = corruption.row_uniforms(seed, epoch, ids[order], lengths[order], chosen.uniforms)
        masks = chosen.masks(uniforms, lengths[order])
        return [np.flatnonzero(row).tolist() for row in masks]

    whole = masks([0, 1, 2, 3])
    assert masks([3, 2, 1, 0]) == whole[::-1]
    assert [masks([i])[0] for i in range(4)] == whole
    assert masks([0, 1, 2, 3], seed=2) != whole
    assert masks([0, 1, 2, 3], epoch=3) != whole


def test_row_numbers_equal_a_generator_of_their_own():
    uniforms = corruption.row_uniforms(7, 2, np.array([0, 11]), np.array([3, 5]), lambda length: 2 * length + 1)
    for row, (example_id, count) in enumerate([(0, 7), (11, 11)]):
        bits = np.random.Philox(key=np.array([7, 2], np.uint64), counter=[0, 0, 0, example_id])
        assert (uniforms[row, :count] == np.random.Generator(bits).random(count)).all()


def test_single_row_functions_return_sorted_positions():
    rng = np.random.default_rng(0)
    for length in (2, 3, 8, 30):
        for positions in (corruption.span_mask(rng, length, 0.7, 2.0), corruption.uniform_mask(rng, length)):
            assert len(positions) >= (length > 2)
            assert (np.diff(positions) > 0).all()
            assert all(0 < p < length - 1 for p in positions)


def test_positions_of_masks():
    masks = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]], bool)
    positions, counts = corruption.mask_positions(masks, 3)
    assert positions.tolist() == [[1, 3, 0], [0, 0, 0], [1, 2, 0]]
    assert counts.tolist() == [2, 0, 2]
