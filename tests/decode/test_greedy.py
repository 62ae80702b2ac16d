"""Constraints, forced prefixes and sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.decode.search.beam import beam_search
from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.greedy import greedy_search
from janus_jax.decode.search.sampling import sampler
from janus_jax.types import Specials

SPECIALS = Specials()
VOCAB = 9  # ids 5 to 8 are words


@functools.partial(jax.jit, static_argnames=("beam", "limit", "constraints"))
def compiled_search(table, keys, *, beam, **shared):
    """Greedy search, sampling (with keys) or beam search in one program."""

    def step(tokens, cache):
        return jnp.broadcast_to(table[cache], (len(tokens), VOCAB)), cache + 1

    if beam > 1:
        return beam_search(step, lambda cache, rows: cache, jnp.int32(0), beam=beam, specials=SPECIALS, **shared)[0]
    pick = None if keys is None else sampler(keys)
    return greedy_search(step, jnp.int32(0), pick_fn=pick, specials=SPECIALS, **shared)


def search(logits, *, beam=1, rows=1, limit=6, keys=None, prefix=None, **watched):
    """Searches a model whose logits [V] or [L, V] depend on the step alone. With `keys` it samples."""
    table = np.broadcast_to(np.asarray(logits, np.float32), (limit, VOCAB))
    shared = {
        "max_lengths": np.full(rows, limit, np.int32),
        "limit": limit,
        "constraints": Constraints.default(SPECIALS, VOCAB, **watched),
        "prefix": None if prefix is None else np.asarray(prefix, np.int32),
    }
    return jax.device_get(compiled_search(table, keys, beam=beam, **shared))


def words(result, row=0, rank=0):
    return result.tokens[row, rank, : result.lengths[row, rank] - 1].tolist()


def logits_of(**values):
    table = np.full(VOCAB, -9.0)
    for name, value in values.items():
        table[SPECIALS.eos if name == "eos" else int(name[1:])] = value
    return table


@pytest.mark.parametrize("beam", [1, 2])
def test_min_length_keeps_eos_away(beam):
    logits = logits_of(eos=3.0, w5=1.0, w6=0.0)
    assert len(words(search(logits, beam=beam))) == 1  # an output is never empty
    assert len(words(search(logits, beam=beam, min_length=4))) == 4


@pytest.mark.parametrize("beam", [1, 3])
def test_no_ngram_comes_twice(beam):
    logits = logits_of(w5=4.0, w6=3.0, w7=1.0, eos=-5.0)
    assert words(search(logits, limit=8))[:3] == [5, 5, 5]
    for n in (1, 2, 3):
        result = words(search(logits, beam=beam, limit=8, no_repeat_ngram=n))
        grams = [tuple(result[i : i + n]) for i in range(len(result) - n + 1)]
        assert len(grams) == len(set(grams))
        assert len(result) >= n
    assert words(search(logits, limit=5, no_repeat_ngram=2)) == [5, 5, 6, 5]


@pytest.mark.parametrize("beam", [1, 3])
def test_outputs_begin_with_their_prefix(beam):
    logits = logits_of(w5=4.0, w6=3.0, eos=2.0)
    pad = SPECIALS.pad
    result = search(logits, beam=beam, rows=3, limit=5, prefix=[[8, 7, 6], [7, pad, pad], [pad, pad, pad]])
    assert words(result, 0)[:3] == [8, 7, 6]
    assert words(result, 1)[0] == 7
    plain = search(logits, beam=beam, rows=3, limit=5)
    assert words(result, 2) == words(plain, 2)
    # Forced tokens count in the score.
    assert result.token_scores[0, 0, 0] == pytest.approx(log_softmax(logits)[8], abs=1e-5)


@functools.partial(jax.jit, static_argnames=("count", "temperature", "top_k", "top_p"))
def picked(count, **settings):
    keys = jax.random.split(jax.random.key(0), count)
    logits = jnp.log(jnp.asarray([0.0, 0.0, 0.1, 0.0, 0.0, 0.4, 0.3, 0.15, 0.05]))
    return sampler(keys, **settings)(jnp.broadcast_to(logits, (count, VOCAB)), jnp.int32(3))


def draws(count=4000, **settings):
    return np.bincount(np.asarray(picked(count, **settings)), minlength=VOCAB) / count


def test_samples_follow_the_distribution():
    np.testing.assert_allclose(draws(), [0, 0, 0.1, 0, 0, 0.4, 0.3, 0.15, 0.05], atol=0.03)
    squared = np.asarray([0, 0, 0.1, 0, 0, 0.4, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(draws(temperature=0.5), squared / squared.sum(), atol=0.03)


def test_samples_are_cut_by_rank_and_by_mass():
    np.testing.assert_allclose(draws(top_k=2), [0, 0, 0, 0, 0, 4 / 7, 3 / 7, 0, 0], atol=0.03)
    # 0.4 + 0.3 fall short of 0.75, with 0.15 they reach it.
    np.testing.assert_allclose(draws(top_p=0.75)[5:8], np.asarray([0.4, 0.3, 0.15]) / 0.85, atol=0.03)
    assert draws(top_p=0.75)[[2, 8]].sum() == 0
    assert draws(top_p=0.01)[5] == 1.0


def test_samples_do_not_depend_on_the_rest_of_the_batch():
    logits = logits_of(w5=1.0, w6=1.0, w7=1.0, eos=-1.0)
    keys = jax.random.split(jax.random.key(1), 4)
    together = search(logits, rows=4, limit=12, keys=keys)
    alone = search(logits, rows=1, limit=12, keys=keys[2:3])
    assert words(alone) == words(together, 2)
    assert len({tuple(words(together, row)) for row in range(4)}) == 4
