"""Searches over graphs against the enumeration of all paths, and against results worked out by hand."""

import functools
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.decode.search.graph import Graph, beam_search, follow, viterbi
from janus_jax.types import Specials
from tests import tiny

SPECIALS = Specials()
FIRST = 5  # id of the first token that is not special


_follow = tiny.compiled_search(follow, "beta", "limit")
_viterbi = tiny.compiled_search(viterbi, "limit")
_beam = tiny.compiled_search(beam_search, "beam", "limit")


def _random(seed, counts, rows, vocab, *, k=None, scale=1.5, forbidden=0.0, behind=np.nan):
    """Random graphs with counts[b] real vertices; numbers of padding are `behind`."""
    rng = np.random.default_rng(seed)
    batch = len(counts)
    real = np.arange(rows) < np.asarray(counts)[:, None]
    exists = np.triu(np.ones((rows, rows), bool), 1) & real[:, None] & real[:, :, None]
    gone = rng.random(exists.shape) < forbidden
    gone[:, np.arange(rows - 1), np.arange(1, rows)] = False  # each vertex has a link to the next one
    links = np.where(exists & ~gone, scale * rng.normal(size=exists.shape), -1e30)
    links = np.where(links > -1e29, log_softmax(links, axis=-1), -np.inf)
    links = np.where(real[:, None] & real[:, :, None], links, behind)
    tokens = log_softmax(scale * rng.normal(size=(batch, rows, vocab)), axis=-1)
    order = np.argsort(-tokens, axis=-1)[..., :k]
    log_probs = np.where(real[..., None], np.take_along_axis(tokens, order, axis=-1), behind)
    return Graph(
        np.asarray(links, np.float32), np.asarray(order + FIRST, np.int32), np.asarray(log_probs, np.float32), real
    )


def _by_hand(links, emitted):
    """A graph of one sentence from probabilities: {(from, to): p} and, for each inner vertex, {token: p}."""
    rows = len(emitted) + 2
    matrix, k = np.zeros((rows, rows)), max(map(len, emitted), default=1)
    for (start, stop), chance in links.items():
        matrix[start, stop] = chance
    tokens, chances = np.full((rows, k), FIRST + 90), np.zeros((rows, k))
    for row, options in enumerate(emitted, 1):
        for c, (token, chance) in enumerate(sorted(options.items(), key=lambda item: -item[1])):
            tokens[row, c], chances[row, c] = token, chance
    with np.errstate(divide="ignore"):
        logs = np.log(matrix[None]).astype(np.float32), np.log(chances[None]).astype(np.float32)
    return Graph(logs[0], tokens[None], logs[1], np.ones((1, rows), bool))


def _paths(graph, b):
    """(log-probability of the links, inner vertices) of all paths of a sentence."""
    count, links = graph.real[b].sum(), np.asarray(graph.links[b], np.float64)
    if count < 2:
        return [(0.0, ())]
    paths = []
    for size in range(count - 1):
        for inner in itertools.combinations(range(1, count - 1), size):
            total = sum(links[a, c] for a, c in itertools.pairwise((0, *inner, count - 1)))
            if total > -math.inf:
                paths.append((total, inner))
    return paths


def _best_paths(graph, b, length_beta, limit):
    """(score, output) of each path with its likeliest tokens, best first."""
    tokens, values = graph.tokens[b, :, 0], np.asarray(graph.log_probs[b, :, 0], np.float64)
    return sorted(
        (
            ((total + values[list(inner)].sum()) / (len(inner) + 1) ** length_beta, tuple(tokens[list(inner)].tolist()))
            for total, inner in _paths(graph, b)
            if len(inner) < limit
        ),
        reverse=True,
    )


def _outputs(graph, b, length_beta, limit):
    """(score, output) of each output, summed over its paths, best first."""
    tokens, values = graph.tokens[b], np.asarray(graph.log_probs[b], np.float64)
    totals = defaultdict(list)
    for total, inner in _paths(graph, b):
        if len(inner) >= limit:
            continue
        for choice in itertools.product(range(tokens.shape[1]), repeat=len(inner)):
            output = tuple(int(tokens[j, c]) for j, c in zip(inner, choice, strict=True))
            totals[output].append(total + sum(values[j, c] for j, c in zip(inner, choice, strict=True)))
    return sorted(
        ((np.logaddexp.reduce(parts) / (len(output) + 1) ** length_beta, output) for output, parts in totals.items()),
        reverse=True,
    )


def _check(result, b, expected):
    """The hypotheses of a sentence are exactly the expected (score, output), in their order."""
    beam, limit = result.tokens.shape[1:]
    expected = expected[:beam]
    assert result.lengths[b].tolist() == [len(output) + 1 for _, output in expected] + [0] * (beam - len(expected))
    for row, (_, output) in zip(result.tokens[b].tolist(), expected, strict=False):
        assert row == [*output, SPECIALS.eos] + [SPECIALS.pad] * (limit - len(output) - 1)
    scores = result.scores[b]
    np.testing.assert_allclose(scores[: len(expected)], [score for score, _ in expected], rtol=2e-5, atol=2e-6)
    assert np.isneginf(scores[len(expected) :]).all()
    assert np.isfinite(result.token_scores[b]).all()


A, B, C, D = range(FIRST, FIRST + 4)
# The likeliest first link leads to vertex 1, whose token is uncertain; vertex 2 is less likely and certain of its token.
HAND = _by_hand(
    {(0, 1): 0.6, (0, 2): 0.4, (1, 3): 0.7, (1, 4): 0.3, (2, 3): 0.2, (2, 4): 0.8, (3, 4): 1.0},
    [{A: 0.3, B: 0.2}, {C: 0.9, A: 0.1}, {D: 0.5, A: 0.4}],
)


def test_greedy_and_lookahead_by_hand():
    # Greedy follows 0.6, 0.7, 1: vertices 1 and 3. Lookahead compares 0.6 * 0.3 with 0.4 * 0.9, then 0.2 * 0.5 with 0.8.
    greedy = _follow(HAND, beta=0.0, length_beta=0.0, limit=4)
    _check(greedy, 0, [(math.log(0.6 * 0.7 * 0.3 * 0.5), (A, D))])
    np.testing.assert_allclose(np.exp(greedy.token_scores[0, 0]), [0.6 * 0.3, 0.7 * 0.5, 1.0, 1.0], rtol=1e-5)
    _check(_follow(HAND, beta=1.0, length_beta=0.0, limit=4), 0, [(math.log(0.4 * 0.8 * 0.9), (C,))])
    # A small beta leaves the choice to the links.
    _check(_follow(HAND, beta=0.1, length_beta=1.0, limit=4), 0, [(math.log(0.6 * 0.7 * 0.3 * 0.5) / 3, (A, D))])


def test_viterbi_and_beam_by_hand():
    # (C) has 0.4 * 0.8 * 0.9, which is 0.537 a token; (C, D) has 0.4 * 0.2 * 0.9 * 0.5, which is 0.330 a token.
    _check(_viterbi(HAND, length_beta=1.0, limit=4), 0, [(math.log(0.4 * 0.8 * 0.9) / 2, (C,))])
    # A large power prefers long outputs: 0.063 of (A, D) to 1/81 is better than 0.288 to 1/16.
    _check(_viterbi(HAND, length_beta=4.0, limit=4), 0, [(math.log(0.6 * 0.7 * 0.3 * 0.5) / 81, (A, D))])
    # "A" is a token of vertices 1 and 2: its two paths are one output.
    sums = _outputs(HAND, 0, 0.0, 4)
    assert {output: score for score, output in sums}[(A,)] == pytest.approx(math.log(0.6 * 0.3 * 0.3 + 0.4 * 0.8 * 0.1))
    _check(_beam(HAND, beam=16, length_beta=0.0, limit=4), 0, sums)


@pytest.mark.parametrize("length_beta", [0.0, 1.0, 1.3])
@pytest.mark.parametrize("limit", [8, 3])
def test_viterbi_equals_the_enumeration_of_all_paths(length_beta, limit):
    for seed, forbidden, behind in ((1, 0.0, np.nan), (2, 0.4, -np.inf), (3, 0.7, 0.0)):
        graph = _random(seed, [7, 6, 3, 2, 7, 1], 7, 4, forbidden=forbidden, behind=behind)
        result = _viterbi(graph, length_beta=length_beta, limit=limit)
        for b in range(6):
            _check(result, b, _best_paths(graph, b, length_beta, limit)[:1])


@pytest.mark.parametrize(("vocab", "rows", "limit"), [(2, 6, 8), (3, 5, 4), (3, 5, 3)])
def test_a_wide_beam_equals_the_enumeration_of_all_outputs(vocab, rows, limit):
    beam = sum(vocab**n for n in range(min(rows - 1, limit)))
    for seed, forbidden, length_beta in ((1, 0.0, 1.0), (2, 0.4, 0.0), (3, 0.7, 0.6)):
        counts = [rows, rows - 1, 2, 1, rows]
        graph = _random(seed, counts, rows, vocab, forbidden=forbidden, behind=-np.inf)
        result = _beam(graph, beam=beam, length_beta=length_beta, limit=limit)
        for b in range(len(counts)):
            _check(result, b, _outputs(graph, b, length_beta, limit))


def test_the_probabilities_of_all_outputs_sum_to_one():
    graph = _random(5, [5, 4, 2, 1], 5, 3)
    result = _beam(graph, beam=40, length_beta=0.0, limit=5)
    np.testing.assert_allclose(np.exp(result.scores).sum(axis=1), 1.0, rtol=1e-5)


def test_a_narrow_beam_never_overrates_an_output_and_ends_with_what_a_wide_one_finds():
    graph = _random(6, [7] * 16, 7, 3, scale=2.5)
    narrow = _beam(graph, beam=4, length_beta=1.0, limit=7)
    same = 0
    for b in range(16):
        exact = {output: score for score, output in _outputs(graph, b, 1.0, 7)}
        found = [
            tuple(row[: length - 1])
            for row, length in zip(narrow.tokens[b].tolist(), narrow.lengths[b].tolist(), strict=True)
        ]
        assert len(set(found)) == 4
        for output, score in zip(found, narrow.scores[b].tolist(), strict=True):
            # The probability of a prefix that stays is exact, since all its paths are kept.
            assert score == pytest.approx(exact[output], rel=1e-4)
        same += found[0] == max(exact, key=exact.get)
    assert same >= 12


def test_equal_neighbours_are_kept():
    graph = _by_hand({(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0}, [{A: 1.0}, {A: 1.0}])
    for result in (
        _follow(graph, beta=1.0, length_beta=1.0, limit=4),
        _viterbi(graph, length_beta=1.0, limit=4),
        _beam(graph, beam=2, length_beta=1.0, limit=4),
    ):
        _check(result, 0, [(0.0, (A, A))])


def test_a_longer_output_is_cut_by_greedy_search_and_left_out_by_the_others():
    graph = _by_hand({(0, 1): 0.9, (1, 2): 1.0, (2, 3): 1.0, (0, 3): 0.1}, [{A: 1.0}, {B: 1.0}])
    _check(_follow(graph, beta=0.0, length_beta=0.0, limit=2), 0, [(math.log(0.9), (A,))])
    for result in (_viterbi(graph, length_beta=0.0, limit=2), _beam(graph, beam=1, length_beta=0.0, limit=2)):
        _check(result, 0, [(math.log(0.1), ())])


def test_a_graph_without_a_way_to_its_end_has_no_output():
    graph = _by_hand({(0, 1): 1.0, (2, 3): 1.0}, [{A: 1.0}, {B: 1.0}])
    for result in (
        _follow(graph, beta=1.0, length_beta=1.0, limit=4),
        _viterbi(graph, length_beta=1.0, limit=4),
        _beam(graph, beam=2, length_beta=1.0, limit=4),
    ):
        _check(result, 0, [])


def test_a_sentence_alone_gives_what_it_gives_in_a_batch():
    counts = [9, 3, 6, 1, 3]
    together = _random(9, counts, 9, 5, k=3)
    searches = (
        functools.partial(_follow, beta=1.0, length_beta=1.0, limit=8),
        functools.partial(_viterbi, length_beta=1.0, limit=8),
        functools.partial(_beam, beam=4, length_beta=1.0, limit=8),
    )
    for search in searches:
        batch = search(together)
        for b, rows in ((0, 9), (1, 9), (1, 3), (3, 9), (3, 2), (4, 4)):
            alone = search(
                Graph(
                    together.links[b : b + 1, :rows, :rows], together.tokens[b : b + 1, :rows],
                    together.log_probs[b : b + 1, :rows], together.real[b : b + 1, :rows],
                )
            )  # fmt: skip
            np.testing.assert_array_equal(alone.tokens[0], batch.tokens[b])
            np.testing.assert_array_equal(alone.lengths[0], batch.lengths[b])
            np.testing.assert_allclose(alone.scores[0], batch.scores[b], rtol=1e-5)


def test_wrong_settings_name_themselves():
    graph = _random(11, [2], 2, 2)
    with pytest.raises(ValueError, match="beam 0"):
        beam_search(graph, beam=0, length_beta=1.0, limit=3, specials=SPECIALS)
    for search in (functools.partial(follow, beta=1.0), viterbi):
        with pytest.raises(ValueError, match="limit 0"):
            search(graph, length_beta=1.0, limit=0, specials=SPECIALS)
