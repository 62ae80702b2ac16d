"""CTC searches against the enumeration of every alignment and against plain Python."""

import functools
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.decode.search.prefix_beam import Emissions, collapse, prefix_beam_search
from janus_jax.types import Specials
from tests import tiny

SPECIALS = Specials()
FIRST = 5  # id of the first token that is not special
BLANK = -1


_search = tiny.compiled_search(prefix_beam_search, "beam", "limit")
_collapse = tiny.compiled_search(collapse, "limit")


def _table(seed, batch, rows, vocab, *, scale=1.5, forbidden=0.0):
    """Log-probabilities [B, R, vocab + 1] of the tokens FIRST ... and, in the last column, the blank."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, rows, vocab + 1)) * scale
    gone = rng.random(logits.shape) < forbidden
    gone[np.arange(batch)[:, None], np.arange(rows), rng.integers(vocab + 1, size=(batch, rows))] = False
    logits = np.where(gone, -np.inf, logits)
    return log_softmax(logits.astype(np.float32), axis=-1)


def _emissions(table, counts=None, k=None, behind=np.nan):
    """Emissions of a table; sentence b has counts[b] real rows, behind which log-probabilities are `behind` (the blank's one less)."""
    labels = table[..., :-1]
    order = np.argsort(-labels, axis=-1, kind="stable")[..., :k]
    real = np.arange(table.shape[1]) < np.asarray([table.shape[1]] * len(table) if counts is None else counts)[:, None]
    log_probs = np.where(real[..., None], np.take_along_axis(labels, order, axis=-1), behind)
    blank = np.where(real, table[..., -1], behind - 1.0)
    return Emissions(
        tokens=np.asarray(order + FIRST, np.int32),
        log_probs=np.asarray(log_probs, np.float32),
        blank=np.asarray(blank, np.float32),
        real=real,
    )


def _rows(emissions, b):
    """The real rows of a sentence as dictionaries symbol -> log-probability."""
    rows = []
    for r in range(int(np.sum(emissions.real[b]))):
        tokens, values = emissions.tokens[b, r].tolist(), emissions.log_probs[b, r].tolist()
        rows.append({**dict(zip(tokens, values, strict=True)), BLANK: float(emissions.blank[b, r])})
    return rows


def _add(*values):
    """log of the sum of exponentials."""
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))


def _output(alignment):
    return tuple(symbol for symbol, _ in itertools.groupby(alignment) if symbol != BLANK)


def _enumeration(rows, limit):
    """Every output of at most limit - 1 tokens that has a positive probability, with its log, best first."""
    totals_of = defaultdict(list)
    for alignment in itertools.product(*rows):
        total = sum(row[symbol] for row, symbol in zip(rows, alignment, strict=True))
        if total > -math.inf and len(_output(alignment)) < limit:
            totals_of[_output(alignment)].append(total)
    return sorted(((_add(*totals), output) for output, totals in totals_of.items()), reverse=True)


def _textbook(rows, beam, limit):
    """Prefix beam search over dictionaries, prefix -> log-probability (ending in a blank, ending in its last token)."""
    prefixes = {(): (0.0, -math.inf)}
    for row in rows:
        grown = defaultdict(lambda: (-math.inf, -math.inf))
        for prefix, (blank, label) in prefixes.items():
            for symbol, value in row.items():
                here = grown[prefix]
                if symbol == BLANK:
                    grown[prefix] = (_add(here[0], _add(blank, label) + value), here[1])
                    continue
                repeats = prefix[-1:] == (symbol,)
                if repeats:
                    grown[prefix] = (here[0], _add(here[1], label + value))
                if len(prefix) + 1 < limit:
                    longer = (*prefix, symbol)
                    mass = (blank if repeats else _add(blank, label)) + value
                    grown[longer] = (grown[longer][0], _add(grown[longer][1], mass))
        best = sorted(((_add(*value), prefix) for prefix, value in grown.items()), reverse=True)[:beam]
        prefixes = {prefix: grown[prefix] for total, prefix in best if total > -math.inf}
    return sorted(((_add(*value), prefix) for prefix, value in prefixes.items()), reverse=True)


def _check(result, b, expected):
    """The hypotheses of a sentence are exactly the expected (log-probability, output), in their order."""
    beam, limit = result.tokens.shape[1:]
    tokens, lengths = result.tokens[b], result.lengths[b].tolist()
    expected = expected[:beam]
    assert lengths == [len(output) + 1 for _, output in expected] + [0] * (beam - len(expected))
    for row, (_, output) in zip(tokens.tolist(), expected, strict=False):
        assert row == [*output, SPECIALS.eos] + [SPECIALS.pad] * (limit - len(output) - 1)
    assert (tokens[len(expected) :] == SPECIALS.pad).all()
    scores = result.scores[b]
    np.testing.assert_allclose(scores[: len(expected)], [score for score, _ in expected], rtol=2e-5, atol=2e-6)
    assert np.isneginf(scores[len(expected) :]).all()
    assert np.isfinite(result.token_scores[b]).all()


def _every_string(vocab, longest):
    return sum(vocab**n for n in range(longest + 1))


@pytest.mark.parametrize(("vocab", "rows", "limit"), [(2, 5, 7), (3, 5, 4), (4, 3, 4), (4, 1, 2)])
def test_a_wide_beam_equals_the_enumeration_of_all_alignments(vocab, rows, limit):
    beam = _every_string(vocab, min(rows, limit - 1))
    for seed, forbidden, behind in ((1, 0.0, np.nan), (2, 0.0, 0.0), (3, 0.3, -np.inf), (4, 0.6, np.nan)):
        counts = np.random.default_rng(seed).integers(0, rows + 1, size=6)
        counts[0] = rows
        emissions = _emissions(_table(seed, 6, rows, vocab, forbidden=forbidden), counts, behind=behind)
        result = _search(emissions, beam=beam, limit=limit)
        for b in range(6):
            _check(result, b, _enumeration(_rows(emissions, b), limit))


def test_the_probabilities_of_all_outputs_sum_to_one():
    emissions = _emissions(_table(5, 4, 5, 3), [5, 4, 2, 0])
    result = _search(emissions, beam=_every_string(3, 5), limit=6)
    np.testing.assert_allclose(np.exp(result.scores).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("vocab", "k", "beam"), [(2, 2, 3), (3, 2, 2), (4, 3, 5), (8, 4, 8), (3, 3, 1)])
def test_a_narrow_beam_equals_the_textbook(vocab, k, beam):
    batch, rows, limit = 16, 14, 9
    for seed, scale, forbidden in ((1, 0.4, 0.0), (2, 2.0, 0.0), (3, 1.0, 0.3)):
        counts = np.random.default_rng(seed).integers(rows // 2, rows + 1, size=batch)
        emissions = _emissions(_table(seed, batch, rows, vocab, scale=scale, forbidden=forbidden), counts, k)
        result = _search(emissions, beam=beam, limit=limit)
        for b in range(batch):
            _check(result, b, _textbook(_rows(emissions, b), beam, limit))


def test_a_parent_that_comes_back_grows_into_its_child():
    # The beam after each row: a, b, nothing; ab, a, b; aba, a, ba (ab is lost); abab, ab, aba (it is back). In the last
    # row ab grows into aba, which is there already.
    a, b = FIRST, FIRST + 1
    probs = [[0.7, 0.2, 0.1], [0.4, 0.6, 0.0], [0.9, 0.05, 0.05], [0.0, 0.65, 0.35], [0.95, 0.0, 0.05]]
    with np.errstate(divide="ignore"):
        emissions = _emissions(np.log(np.asarray([probs], np.float32)))
    expected = [(0.233415, (a, b, a, b, a)), (0.194335, (a, b, a)), (0.125685, (a, b, a, a))]
    _check(_search(emissions, beam=3, limit=7), 0, [(math.log(p), output) for p, output in expected])


def test_the_likeliest_output_need_not_be_that_of_the_likeliest_alignment():
    # Twice a blank: 0.36. The three alignments of "a" together: 0.64.
    emissions = _emissions(np.log(np.asarray([[[0.4, 0.6], [0.4, 0.6]]], np.float32)))
    path = _collapse(emissions, limit=4)
    _check(path, 0, [(math.log(0.36), ())])
    _check(_search(emissions, beam=2, limit=4), 0, [(math.log(0.64), (FIRST,)), (math.log(0.36), ())])


def _collapse_reference(rows, limit):
    score, output, confidence, before = 0.0, [], [], BLANK
    for row in rows:
        value, symbol = max((value, symbol == BLANK, symbol) for symbol, value in row.items())[::2]
        score += value
        if symbol != BLANK and symbol == before:
            confidence[-1] = max(confidence[-1], value)
        elif symbol != BLANK:
            output.append(symbol)
            confidence.append(value)
        before = symbol
    return score, tuple(output[: limit - 1]), confidence[: limit - 1]


@pytest.mark.parametrize("limit", [1, 4, 20])
def test_collapse_equals_plain_python(limit):
    batch, rows = 24, 12
    for seed, forbidden, behind in ((1, 0.0, np.nan), (2, 0.3, 0.0), (3, 0.5, -np.inf)):
        counts = np.random.default_rng(seed).integers(0, rows + 1, size=batch)
        emissions = _emissions(_table(seed, batch, rows, 2, forbidden=forbidden), counts, behind=behind)
        result = _collapse(emissions, limit=limit)
        assert result.tokens.shape == (batch, 1, limit)
        for b in range(batch):
            score, output, confidence = _collapse_reference(_rows(emissions, b), limit)
            _check(result, b, [(score, output)])
            confidence += [0.0] * (limit - len(confidence))
            np.testing.assert_allclose(result.token_scores[b, 0], confidence, rtol=1e-6)


def test_collapse_merges_repeats_and_keeps_what_a_blank_parts():
    a, b = FIRST, FIRST + 1
    path = [a, a, BLANK, a, b]
    confidence = [0.6, 0.9, 0.8, 0.7, 0.5]
    probs = np.full((1, 5, 3), 0.05)
    for r, (symbol, p) in enumerate(zip(path, confidence, strict=True)):
        probs[0, r, -1 if symbol == BLANK else symbol - FIRST] = p
    result = _collapse(_emissions(np.log(probs).astype(np.float32)), limit=6)
    assert result.tokens[0, 0].tolist() == [a, a, b, SPECIALS.eos, SPECIALS.pad, SPECIALS.pad]
    np.testing.assert_allclose(np.exp(result.token_scores[0, 0]), [0.9, 0.7, 0.5, 1.0, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(result.scores[0, 0], np.log(confidence).sum(), rtol=1e-6)


def test_of_a_token_and_a_blank_that_tie_the_blank_counts():
    emissions = _emissions(np.log(np.full((1, 2, 2), 0.5, np.float32)))
    _check(_collapse(emissions, limit=3), 0, [(math.log(0.25), ())])


def test_no_hypothesis_exceeds_the_limit():
    rows, vocab = 10, 3
    table = _table(6, 4, rows, vocab, scale=0.5)
    table[..., -1] = -6.0  # hardly any blanks: all would like to be long
    emissions = _emissions(table)
    for limit in (1, 4):
        result = _search(emissions, beam=3, limit=limit)
        assert result.tokens.shape == (4, 3, limit)
        assert int(np.max(result.lengths)) == int(np.max(_collapse(emissions, limit=limit).lengths)) == limit
        for b in range(4):
            _check(result, b, _textbook(_rows(emissions, b), 3, limit))
    only = _search(emissions, beam=3, limit=1)
    assert only.lengths.tolist() == [[1, 0, 0]] * 4
    np.testing.assert_allclose(only.scores[:, 0], table[..., -1].sum(axis=1), rtol=1e-6)


def test_a_sentence_without_rows_has_the_empty_output():
    emissions = _emissions(_table(7, 3, 4, 3), [0, 4, 0])
    for result in (_search(emissions, beam=3, limit=5), _collapse(emissions, limit=5)):
        for b in (0, 2):
            _check(result, b, [(0.0, ())])
        assert int(result.lengths[1, 0]) >= 1
    no_axis = Emissions(*(x[:, :0] for x in (emissions.tokens, emissions.log_probs, emissions.blank, emissions.real)))
    for result in (_search(no_axis, beam=2, limit=5), _collapse(no_axis, limit=5)):
        _check(result, 1, [(0.0, ())])


def test_a_row_that_can_emit_nothing_leaves_no_hypothesis():
    table = _table(8, 2, 4, 3)
    table[0, 2] = -np.inf
    emissions = _emissions(table)
    for result in (_search(emissions, beam=4, limit=5), _collapse(emissions, limit=5)):
        _check(result, 0, [])
        assert not result.token_scores[0].any()
        assert (result.scores[1] > -np.inf).all()


def test_a_sentence_alone_gives_what_it_gives_in_a_batch():
    counts = [9, 3, 6, 0, 3]
    table = _table(9, 5, 9, 5)
    together = _emissions(table, counts, 4)
    for search in (functools.partial(_search, beam=4, limit=8), functools.partial(_collapse, limit=8)):
        batch = search(together)
        for b, rows in ((0, 9), (1, 9), (3, 9), (1, 3), (4, 3)):  # padded as in the batch, or not at all
            alone = search(_emissions(table[b : b + 1, :rows], counts[b : b + 1], 4))
            np.testing.assert_array_equal(alone.tokens[0], batch.tokens[b])
            np.testing.assert_array_equal(alone.lengths[0], batch.lengths[b])
            np.testing.assert_allclose(alone.scores[0], batch.scores[b], rtol=1e-6)
            np.testing.assert_allclose(alone.token_scores[0], batch.token_scores[b], rtol=1e-6)


def test_wrong_settings_name_themselves():
    emissions = _emissions(_table(11, 1, 2, 2))
    with pytest.raises(ValueError, match="beam 0"):
        prefix_beam_search(emissions, beam=0, limit=3, specials=SPECIALS)
    with pytest.raises(ValueError, match="limit 0"):
        collapse(emissions, limit=0, specials=SPECIALS)
