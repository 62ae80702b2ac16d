"""Choosing from vocabulary logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.decode.search.vocab import argmax, forbid


@pytest.mark.parametrize("columns", [5, 128, 384, 300])
def test_argmax_is_the_first_of_the_largest(columns):
    rng = np.random.default_rng(columns)
    # Few different values: ties within and between blocks.
    logits = rng.integers(0, 4, (3, 50, columns)).astype(np.float32)
    logits[0, 0] = -np.inf
    np.testing.assert_array_equal(argmax(jnp.asarray(logits)), logits.argmax(-1))


def test_forbidden_columns():
    assert np.isneginf(forbid(6, (1, 3), 5)).tolist() == [False, True, False, True, False, True]
    assert not forbid(3, (), 3).any()
