"""Beam search on toy models whose optimum is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.decode.search.beam import STOPS, beam_search
from janus_jax.decode.search.constraints import Constraints
from janus_jax.types import Specials

SPECIALS = Specials()


def _looked_up(table, sentence, step, before, last):
    """A model whose logits stand in a table [sentences, steps, V + 1, V, V]."""
    return table[sentence, step, before + 1, last]


@functools.partial(jax.jit, static_argnames=("model", "beam", "limit", "constraints", "lenpen", "stop"))
def _run(table, max_lengths, *, model, beam, **settings):
    n = len(max_lengths) * beam
    cache = {
        "sentence": jnp.repeat(jnp.arange(len(max_lengths)), beam),
        "step": jnp.zeros(n, jnp.int32),
        "before": jnp.full(n, -1, jnp.int32),
    }

    def step(tokens, cache):
        last = tokens[:, 0]
        logits = model(table, cache["sentence"], cache["step"], cache["before"], last)
        return logits, {"sentence": cache["sentence"], "step": cache["step"] + 1, "before": last}

    def reorder(cache, rows):
        return jax.tree.map(lambda x: x[rows], cache)

    return beam_search(step, reorder, cache, beam=beam, max_lengths=max_lengths, specials=SPECIALS, **settings)[0]


def _search(table, *, batch, limit, vocab_size, model=_looked_up, max_lengths=None, forbidden=None, **settings):
    """Searches a model whose next-token logits depend on the sentence, the step and the last two tokens.

    model: function of (table, sentence [N], step [N], before [N], last [N]) -> [N, V]. The cache holds what a real one
    does: everything that the tokens before `last` left behind, row by row, so that a wrong reorder shows.
    """
    constraints = Constraints.default(SPECIALS, vocab_size)
    if forbidden is not None:
        constraints = Constraints(tuple(forbidden), vocab_size)
    lengths = np.asarray([limit] * batch if max_lengths is None else max_lengths, np.int32)
    return jax.device_get(_run(table, lengths, model=model, limit=limit, constraints=constraints, **settings))


def _random_table(seed, batch, limit, vocab, scale=2.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(batch, limit, vocab + 1, vocab, vocab)) * scale).astype(np.float32)


def _brute_force(table, max_length, allowed, lenpen):
    """All sequences of a sentence with their scores, best first; table [L, V+1, V, V]."""
    log_probs = log_softmax(table.astype(np.float64), axis=-1)
    hypotheses = []
    for length in range(2, max_length + 1):
        for inner in itertools.product(allowed, repeat=length - 1):
            tokens = (*inner, SPECIALS.eos)
            total, before, last = 0.0, -1, SPECIALS.bos
            for step, token in enumerate(tokens):
                total += log_probs[step, before + 1, last, token]
                before, last = last, token
            hypotheses.append((total / length**lenpen, tokens))
    return sorted(hypotheses, reverse=True)


def _tokens(result, sentence, rank):
    return tuple(result.tokens[sentence, rank, : result.lengths[sentence, rank]].tolist())


def test_a_markov_lattice_whose_best_path_starts_badly():
    # From bos, token 5 looks best (0.6) but leads to a flat end; token 6 (0.4) is sure of its way: 6 7 eos.
    probs = np.full((8, 8), 1e-9)
    probs[0, 5], probs[0, 6] = 0.6, 0.4
    probs[5, [5, 6, 7, 2]] = 0.25
    probs[6, 7] = probs[7, 2] = 1.0
    logits = np.log(probs.astype(np.float32))

    def model(table, sentence, step, before, last):
        return table[last]

    greedy = _search(logits, model=model, batch=2, beam=1, limit=6, vocab_size=8, lenpen=0.0)
    assert _tokens(greedy, 0, 0)[0] == 5
    for stop in STOPS:
        beam = _search(logits, model=model, batch=2, beam=4, limit=6, vocab_size=8, lenpen=0.0, stop=stop)
        assert _tokens(beam, 1, 0) == (6, 7, 2)
        np.testing.assert_allclose(beam.scores[1, 0], np.log(0.4), atol=1e-5)


@pytest.mark.parametrize("lenpen", [0.0, 0.6, 1.0])
def test_a_wide_beam_equals_brute_force(lenpen):
    batch, limit, vocab = 3, 4, 8
    table = _random_table(1, batch, limit, vocab)
    lengths = [4, 3, 4]
    result = _search(table, batch=batch, beam=64, limit=limit, vocab_size=vocab, lenpen=lenpen, max_lengths=lengths)
    for sentence in range(batch):
        best = _brute_force(table[sentence], lengths[sentence], (3, 5, 6, 7), lenpen)[:5]
        for rank, (score, tokens) in enumerate(best):
            assert _tokens(result, sentence, rank) == tokens
            np.testing.assert_allclose(result.scores[sentence, rank], score, rtol=1e-5)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("lenpen", [0.0, 1.0])
def test_scores_belong_to_their_tokens(stop, lenpen):
    batch, limit, vocab = 8, 9, 9  # as in the test of the best rule, so that both share compiled programs
    table = _random_table(2, batch, limit, vocab)
    result = _search(table, batch=batch, beam=3, limit=limit, vocab_size=vocab, lenpen=lenpen, stop=stop)
    log_probs = log_softmax(table, axis=-1)
    for b, k in itertools.product(range(batch), range(3)):
        tokens = _tokens(result, b, k)
        expected, before, last = [], -1, SPECIALS.bos
        for step, token in enumerate(tokens):
            expected.append(log_probs[b, step, before + 1, last, token])
            before, last = last, token
        np.testing.assert_allclose(result.token_scores[b, k, : len(tokens)], expected, atol=1e-5)
        assert not result.token_scores[b, k, len(tokens) :].any()
        assert (result.tokens[b, k, len(tokens) :] == SPECIALS.pad).all()
        np.testing.assert_allclose(result.scores[b, k], sum(expected) / len(tokens) ** lenpen, rtol=1e-5)
        assert tokens[-1] == SPECIALS.eos
        assert SPECIALS.eos not in tokens[:-1]
        assert not {SPECIALS.pad, SPECIALS.bos, SPECIALS.mask} & set(tokens)
    assert (np.diff(result.scores, axis=1) <= 0).all()


def _reference(table, beam, limit, vocab, lenpen, forbidden, *, stops=True):
    """The released rules (docs/method.md, section 7) for one sentence, in plain Python.

    Without `stops` the search goes on to the limit, and the best hypotheses stay.
    """
    log_probs = log_softmax(table.astype(np.float64), axis=-1)
    live, finished = [(0.0, ())], []
    for step in range(limit):
        options = []
        for total, tokens in live:
            before, last = (-1, SPECIALS.bos, *tokens)[-2:] if tokens else (-1, SPECIALS.bos)
            for token in range(vocab):
                banned = token in forbidden or (step == 0 and token == SPECIALS.eos)
                if banned or (step + 1 == limit and token != SPECIALS.eos):
                    continue
                options.append((total + log_probs[step, before + 1, last, token], (*tokens, token)))
        options = sorted(options, reverse=True)[: 2 * beam]
        for total, tokens in options[:beam]:
            if tokens[-1] == SPECIALS.eos and (len(finished) < beam or not stops):
                finished.append((total / len(tokens) ** lenpen, tokens))
        live = [o for o in options if o[1][-1] != SPECIALS.eos][:beam]
        if stops and len(finished) == beam:
            break
    return sorted(finished, reverse=True)[:beam]


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_released_stopping_follows_its_rule(beam):
    batch, limit, vocab = 6, 8, 7
    table = _random_table(3, batch, limit, vocab, scale=1.5)
    result = _search(
        table, batch=batch, beam=beam, limit=limit, vocab_size=vocab, lenpen=1.0, stop="released", forbidden=[1]
    )
    for b in range(batch):
        expected = _reference(table[b], beam, limit, vocab, 1.0, {1})
        assert [_tokens(result, b, k) for k in range(beam)] == [tokens for _, tokens in expected]
        np.testing.assert_allclose(result.scores[b], [score for score, _ in expected], rtol=1e-5)


def test_stopping_by_the_best_rule_loses_nothing():
    batch, limit, vocab = 8, 9, 9
    table = _random_table(4, batch, limit, vocab)
    for lenpen in (0.0, 1.0):
        runs = {
            s: _search(table, batch=batch, beam=3, limit=limit, vocab_size=vocab, lenpen=lenpen, stop=s) for s in STOPS
        }
        assert (runs["best"].scores[:, 0] >= runs["released"].scores[:, 0] - 1e-6).all()
        assert (runs["best"].scores >= runs["current"].scores - 1e-6).all()
        whole = [_reference(rows, 3, limit, vocab, lenpen, {0, 1, 4}, stops=False) for rows in table]
        for b, expected in enumerate(whole):
            assert [_tokens(runs["best"], b, k) for k in range(3)] == [tokens for _, tokens in expected]
            np.testing.assert_allclose(runs["best"].scores[b], [score for score, _ in expected], rtol=1e-5)


def test_greedy_is_a_beam_of_one_and_ignores_its_neighbours():
    batch, limit, vocab = 5, 12, 9
    table = _random_table(5, batch, limit, vocab)
    together = _search(table, batch=batch, beam=1, limit=limit, vocab_size=vocab)
    for b in range(batch):
        expected = _reference(table[b], 1, limit, vocab, 1.0, {0, 1, 4})
        assert _tokens(together, b, 0) == expected[0][1]
        np.testing.assert_allclose(together.scores[b, 0], expected[0][0], rtol=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
def test_each_sentence_has_its_length_limit_and_padding_gets_no_hypothesis(beam):
    batch, limit, vocab = 3, 8, 9
    never_ends = np.zeros(vocab, np.float32)
    never_ends[SPECIALS.eos] = -20.0

    def model(table, sentence, step, before, last):
        return table + 0.01 * last[:, None] * jnp.arange(vocab)

    result = _search(
        never_ends, model=model, batch=batch, beam=beam, limit=limit, vocab_size=vocab, max_lengths=[3, 0, 8]
    )
    assert result.lengths.tolist() == [[3] * beam, [0] * beam, [8] * beam]
    assert np.isneginf(result.scores[1]).all()
    assert (result.tokens[0, :, 2] == SPECIALS.eos).all()


@pytest.mark.parametrize("beam", [1, 3])
def test_growing_the_cache_changes_nothing(beam):
    batch, limit, vocab = 3, 12, 9
    never = np.where(np.arange(vocab) == SPECIALS.eos, np.float32(-2.0), 0)

    def start(length):
        return {"tokens": jnp.zeros((batch * beam, length), jnp.int32), "length": jnp.int32(0)}

    def step(tokens, cache):
        history = jax.lax.dynamic_update_slice(cache["tokens"], tokens, (0, cache["length"]))
        sums = jnp.cumsum(history, axis=1)[:, -1]
        logits = jnp.sin(sums[:, None] * 1.7 + jnp.arange(vocab)) + never
        return logits, {"tokens": history, "length": cache["length"] + 1}

    def grow(cache, length):
        pad = length - cache["tokens"].shape[1]
        return {"tokens": jnp.pad(cache["tokens"], ((0, 0), (0, pad))), "length": cache["length"]}

    def reorder(c, order):
        return {"tokens": c["tokens"][order], "length": c["length"]}

    settings = {
        "beam": beam,
        "limit": limit,
        "specials": SPECIALS,
        "constraints": Constraints.default(SPECIALS, vocab),
        "max_lengths": np.asarray([12, 4, 9]),
    }
    whole = jax.jit(lambda: beam_search(step, reorder, start(limit), **settings)[0])()
    staged = jax.jit(lambda: beam_search(step, reorder, start(3), grow_fn=grow, stages=(3, 6), **settings)[0])()
    np.testing.assert_array_equal(whole.tokens, staged.tokens)
    np.testing.assert_array_equal(whole.scores, staged.scores)


def test_a_finished_batch_stops():
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        logits = jnp.where(cache["step"] == 2, jnp.zeros(8).at[SPECIALS.eos].set(9.0), jnp.zeros(8).at[5].set(3.0))
        return jnp.broadcast_to(logits, (len(tokens), 8)), {"step": cache["step"] + 1}

    def search():
        return beam_search(
            step,
            lambda c, rows: c,
            {"step": jnp.int32(0)},
            beam=1,
            limit=50,
            specials=SPECIALS,
            constraints=Constraints.default(SPECIALS, 8),
            max_lengths=np.asarray([50, 50]),
        )

    result, passes = jax.jit(search)()
    jax.effects_barrier()
    assert np.asarray(result.lengths).tolist() == [[3], [3]]
    assert len(calls) == 3
    assert passes.tolist() == [3, 3]


def test_passes_count_until_the_search_is_sure():
    """Both finished hypotheses have two tokens, but a live one may become better up to step 9."""
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        first = jnp.zeros(9).at[5].set(2.0).at[6].set(2.0).at[7].set(2.5)
        ends, goes_on = jnp.full(9, -9.0).at[SPECIALS.eos].set(1.0), jnp.full(9, -20.0).at[7].set(1.0)
        after = jnp.where((tokens == 7), goes_on, ends)
        return jnp.where(cache["step"] == 0, first, after), {"step": cache["step"] + 1}

    def search():
        return beam_search(
            step, lambda c, rows: c, {"step": jnp.int32(0)}, beam=2, limit=12, specials=SPECIALS,
            constraints=Constraints.default(SPECIALS, 9), max_lengths=np.asarray([9, 0]), lenpen=0.0,
        )  # fmt: skip

    result, passes = jax.jit(search)()
    jax.effects_barrier()
    assert passes.tolist() == [len(calls), 0]
    assert len(calls) > int(result.lengths[0, 0])


def test_wrong_settings_name_themselves():
    with pytest.raises(ValueError, match="stop: 'soon'"):
        beam_search(
            None,
            None,
            None,
            beam=2,
            max_lengths=[1],
            limit=3,
            specials=SPECIALS,
            constraints=Constraints.default(SPECIALS, 9),
            stop="soon",
        )
