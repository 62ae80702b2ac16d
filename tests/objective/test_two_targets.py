"""A second target for all rows but AR's: each family learns from its own, and nothing compares rows of two targets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import ConfigError, LossWeights, ObjectiveConfig
from janus_jax.objective.joint import batch_divisors, check_two_targets, loss
from tests import tiny

TERMS = ("ar", "ctc", "nar", "aux", "length", "kl_nar_aux")
OBJECTIVE = ObjectiveConfig(name="janus_all")


@pytest.fixture(scope="module")
def net_and_params():
    return tiny.model(ctc_ratio=2.0)


def with_second_target(seed=3):
    """A batch, a batch of the same sources with other targets and masks, and both in one batch."""
    first, second = tiny.batch(), tiny.batch(seed=seed)
    second = dataclasses.replace(second, source=first.source)
    return first, second, dataclasses.replace(second, target=first.target, parallel_target=second.target)


@functools.partial(jax.jit, static_argnums=(0, 3))
def losses(net, params, batch, terms):
    """The metrics and the gradients of some terms."""
    divisors = batch_divisors(batch, net.config, OBJECTIVE, net.specials.pad)

    def total(params):
        return loss(net, OBJECTIVE, params, batch, divisors=divisors, step=jnp.int32(0), terms=terms)

    (_, metrics), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return metrics, gradients


def test_ar_learns_from_the_target_and_the_other_rows_from_the_second(net_and_params):
    net, params = net_and_params
    # Wider than at the start of training, where the halves agree and a divergence of 1e-9 is all rounding.
    params = tiny.sharper(params, 6)
    first, second, both = with_second_target()
    ar, ar_gradients = jax.device_get(losses(net, params, first, ("ar",)))
    others, other_gradients = jax.device_get(losses(net, params, second, TERMS[1:]))
    metrics, gradients = losses(net, params, both, TERMS)
    assert float(others["loss/kl_nar_aux"]) > 1e-4
    for name, value in (ar | others).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    together = jax.tree.map(np.add, ar_gradients, other_gradients)
    assert tiny.largest_difference(gradients, together) < 1e-5


def test_the_same_target_twice_equals_one_target(net_and_params):
    net, params = net_and_params
    batch = tiny.batch()
    twice = dataclasses.replace(batch, parallel_target=batch.target)
    one, two = losses(net, params, batch, TERMS), losses(net, params, twice, TERMS)
    assert tiny.largest_difference(one[1], two[1]) < 1e-5
    np.testing.assert_allclose(one[0]["loss/nar"], two[0]["loss/nar"], rtol=1e-5)


def test_divergences_with_ar_are_refused_and_left_out(net_and_params):
    net, params = net_and_params
    _, _, both = with_second_target()
    with pytest.raises(ValueError, match="kl_ar_nar"):
        losses(net, params, both, ("ar", "nar", "kl_ar_nar"))
    with pytest.raises(ConfigError, match=r"weights.kl_ar_nar: .*second target.*set objective.weights.kl_ar_nar=0 and"):
        check_two_targets(OBJECTIVE)
    without = LossWeights(kl_ar_nar=0.0, kl_ar_aux=0.0, kl_ar_ctc=0.0)
    check_two_targets(dataclasses.replace(OBJECTIVE, weights=without))
