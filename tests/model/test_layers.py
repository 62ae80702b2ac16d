"""Blocks that encoder and decoder layers share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.model.layers import dense


@pytest.mark.parametrize("width", [16, 18])  # a multiple of the parts in which a CPU computes few rows, and none
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2,), (1, 3), (3, 1), (2, 2), (0,)])
def test_few_rows_have_the_products_that_they_have_among_others(width, shape):
    layer = dense(6, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (8, width))
    params = layer.init(jax.random.key(1), x)
    few = math.prod(shape)
    alone = layer.apply(params, x[:few].reshape(*shape, width))
    assert alone.shape == (*shape, 6)
    np.testing.assert_allclose(alone.reshape(few, 6), layer.apply(params, x)[:few], rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU computes few rows in parts")
def test_the_sum_of_the_parts_of_a_row_is_rounded_once():
    layer = dense(64, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 512), jnp.bfloat16)
    params = layer.init(jax.random.key(1), x)
    kernel = params["params"]["kernel"].astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    result = layer.apply(params, x)
    assert result.dtype == jnp.bfloat16
    # Half a unit in the last place of eight bits, and what float32 sums add to it.
    np.testing.assert_allclose(np.asarray(result, np.float64), exact, rtol=2**-8, atol=1e-6)
