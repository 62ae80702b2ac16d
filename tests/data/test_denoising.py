"""The noise of denoising pretraining: its statistics (docs/method.md, section 6), and its bounds."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from janus_jax.config import DataConfig
from janus_jax.data import denoising
from janus_jax.data.corruption import row_generators, span_lengths
from janus_jax.data.denoising import max_masked, noise
from janus_jax.types import Specials

SPECIALS = Specials(mask=999)
VOCAB = 1000
WORD_STARTS = np.arange(VOCAB) % 4 != 3  # three tokens of four begin a word
PLAIN = DataConfig()


def block(rng, length=256):
    """A block of random tokens, with sentences of 17 tokens; those before the specials' ids never occur."""
    tokens = np.concatenate([[0], rng.integers(5, 999, length - 2), [2]]).astype(np.int32)
    return tokens, np.arange(1, length - 1, 17)


def many(count=400, length=256, **changes):
    """(block, sentences, noised) of many examples."""
    data, text = dataclasses.replace(PLAIN, **changes), np.random.default_rng(0)
    for rng in row_generators(0, 0, np.arange(count)):
        tokens, sentences = block(text, length)
        yield tokens, sentences, noise(rng, tokens, WORD_STARTS, sentences, data, SPECIALS)


def shown(noised):
    """The source without masks."""
    return noised.source[noised.source != SPECIALS.mask]


def test_about_26_percent_of_the_tokens_are_masked_and_half_of_them_stay_in_the_source():
    draws = list(many())
    total = sum(len(tokens) for tokens, _, _ in draws)
    masked = sum(len(noised.masked) for _, _, noised in draws)
    visible = sum(len(noised.masked) - (len(tokens) - len(shown(noised))) for tokens, _, noised in draws)
    assert masked / total == pytest.approx(0.26, abs=0.015)
    assert visible / masked == pytest.approx(0.5, abs=0.03)


def test_spans_are_poisson_and_sum_to_their_budget():
    rng = np.random.default_rng(0)
    lengths = [span_lengths(rng, 3.0, 90) for _ in range(2000)]
    assert all(one.sum() == 90 and one[-1] > 0 for one in lengths)
    whole = np.concatenate([one[:-1] for one in lengths])
    # That a sum must be reached favours short spans a little.
    assert whole.mean() == pytest.approx(3.0, abs=0.1)
    assert whole.var() == pytest.approx(3.0, abs=0.15)
    assert (whole == 0).mean() == pytest.approx(math.exp(-3.0), abs=0.006)
    with pytest.raises(ValueError, match="nothing to mask"):
        span_lengths(rng, 3.0, 0)


def test_masked_tokens_are_whole_words_of_the_block():
    for tokens, sentences, noised in many(100):
        masked = np.zeros(len(tokens), bool)
        masked[noised.masked] = True
        assert not masked[[0, -1]].any()
        begins = WORD_STARTS[tokens]
        begins[sentences] = True
        begins[-1] = True
        # Where masking begins or ends, a word begins.
        changes = np.flatnonzero(masked[1:] != masked[:-1]) + 1
        assert begins[changes].all()
        assert (np.diff(noised.masked) > 0).all()


def test_the_source_is_the_block_without_hidden_tokens_and_with_a_mask_for_each_hidden_run():
    for tokens, _, noised in many(100):
        source, seen = noised.source, shown(noised)
        assert source[0] == 0
        assert source[-1] == 2
        masked = np.zeros(len(tokens), bool)
        masked[noised.masked] = True
        # Every token that is not masked is shown, in its place in the order.
        at = iter(seen.tolist())
        assert all(token in at for token in tokens[~masked].tolist())
        at = iter(tokens.tolist())
        assert all(token in at for token in seen.tolist())


def test_all_hidden_gives_one_mask_a_run_and_all_kept_gives_the_block(monkeypatch):
    drawn, spans = [], denoising._spans
    monkeypatch.setattr(denoising, "_spans", lambda *arguments: drawn.append(spans(*arguments)) or drawn[-1])
    for tokens, _, noised in many(100, noise_hidden=1.0):
        masked = np.zeros(len(tokens), bool)
        masked[noised.masked] = True
        np.testing.assert_array_equal(shown(noised), tokens[~masked])
        starts, ends, inserts = drawn[-1]
        # The start of the span that each token belongs to: of those over it, the one that starts last.
        owners = [max(starts[(starts <= at) & (at < ends)], default=-1) for at in range(len(tokens))]
        runs = sum(owner not in (-1, before) for before, owner in itertools.pairwise(owners))
        assert (noised.source == SPECIALS.mask).sum() == runs + inserts
    inserted = 0
    for tokens, _, noised in many(100, noise_hidden=0.0):
        np.testing.assert_array_equal(
            shown(noised), tokens[: len(shown(noised))] if len(shown(noised)) < 256 else tokens
        )
        inserted += (noised.source == SPECIALS.mask).sum()
    assert inserted == 0  # a source that shows the whole block has no room for insertions


@pytest.mark.parametrize(
    ("hidden", "source"),
    [
        # Spans side by side have a mask each, and so has each part of a span that another one interrupts.
        ([1, 1, 1, 1], [0, 11, 999, 999, 16, 999, 999, 999, 2]),
        ([1, 0, 0, 1], [0, 11, 999, 14, 15, 16, 17, 999, 19, 20, 2]),
        ([0, 1, 1, 0], [0, 11, 12, 13, 999, 16, 999, 18, 999, 2]),
        ([0, 0, 0, 0], [0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 2]),
    ],
)
def test_each_unbroken_run_of_a_hidden_span_becomes_one_mask(monkeypatch, hidden, source):
    class Draws:
        """Hides the spans of `hidden`, and neither permutes nor rotates."""

        def random(self, count=None):
            return 1.0 if count is None else 1.0 - np.array(hidden)

    # Tokens 12 13 and 14 15 side by side, and 18 within 17 18 19 20.
    starts, ends = np.array([2, 4, 7, 8]), np.array([4, 6, 11, 9])
    monkeypatch.setattr(denoising, "_spans", lambda *_: (starts, ends, 0))
    tokens = np.array([0, *range(11, 21), 2], np.int32)
    noised = noise(Draws(), tokens, WORD_STARTS, np.array([1]), PLAIN, SPECIALS)
    assert noised.masked.tolist() == [2, 3, 4, 5, 7, 8, 9, 10]
    assert noised.source.tolist() == source


def test_spans_of_length_zero_insert_masks(monkeypatch):
    def masks():
        return np.array([(noised.source == SPECIALS.mask).sum() for _, _, noised in many(400, noise_hidden=1.0)])

    inserted, spans = masks(), denoising._spans
    monkeypatch.setattr(denoising, "_spans", lambda *arguments: (*spans(*arguments)[:2], 0))
    inserted -= masks()
    # Of 190 words 58 are masked, in about 20 spans: one of them is a zero.
    assert inserted.min() == 0
    assert inserted.mean() == pytest.approx(20 * math.exp(-3.0), abs=0.15)


def test_bounds_hold_and_are_seldom_reached():
    for length in (3, 8, 32, 512):
        most, reached = max_masked(length, 0.3), 0
        for tokens, _, noised in many(200, length):
            assert 1 <= len(noised.masked) <= most
            assert len(noised.source) <= len(tokens)
            reached += len(noised.masked) == most
        assert length < 512 or reached < 10
    assert max_masked(512, 0.3) < 0.33 * 512


def test_rotation_keeps_the_tokens_and_happens_as_often_as_asked():
    turned = 0
    for (tokens, _, plain), (_, _, noised) in zip(many(300), many(300, rotate=0.5), strict=True):
        np.testing.assert_array_equal(plain.masked, noised.masked)
        assert sorted(plain.source) == sorted(noised.source)
        inner, other = plain.source[1:-1], noised.source[1:-1]
        if not np.array_equal(inner, other):
            turned += 1
            assert any(np.array_equal(np.roll(inner, -k), other) for k in range(len(inner)))
        assert len(tokens) == 256
    assert turned / 300 == pytest.approx(0.5, abs=0.08)


def test_permuted_sentences_stay_whole():
    moved = 0
    for tokens, sentences, noised in many(100, noise_hidden=0.0, permute_sentences=1.0):
        pieces = [tuple(piece) for piece in np.split(tokens[:-1], sentences)[1:]]
        cuts = [i for i in range(1, len(noised.source) - 1) if noised.source[i] in {p[0] for p in pieces}]
        assert sorted(noised.source) == sorted(tokens)
        assert {p[0] for p in pieces} <= set(noised.source[cuts].tolist())
        text = noised.source.tolist()
        for piece in pieces:
            at = [i for i in range(len(text)) if tuple(text[i : i + len(piece)]) == piece]
            assert at
        moved += not np.array_equal(noised.source, tokens)
    assert moved > 95


def test_noise_depends_on_seed_epoch_and_example_alone():
    text = np.random.default_rng(1)
    blocks = [block(text) for _ in range(6)]

    def batches(ids, seed=0, epoch=0):
        rows = row_generators(seed, epoch, np.array(ids))
        return [
            noise(rng, *(blocks[i][0], WORD_STARTS, blocks[i][1]), PLAIN, SPECIALS).source.tolist()
            for i, rng in zip(ids, rows, strict=True)
        ]

    every = batches([0, 1, 2, 3, 4, 5])
    assert batches([4, 1]) == [every[4], every[1]]
    assert batches([0], epoch=1) != [every[0]]
    assert batches([0], seed=1) != [every[0]]
