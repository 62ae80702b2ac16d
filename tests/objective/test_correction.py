"""NAR rows that read predictions of their own in place of masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.config import ObjectiveConfig
from janus_jax.model.families.mask_predict import masked_tokens
from janus_jax.objective.correction import own_tokens
from janus_jax.objective.joint import loss
from tests import tiny

TERMS = ("nar", "length")


def shown_of(net, params, batch, share, seed=0, **objective):
    return np.array(_shown(net, ObjectiveConfig(**objective), params, batch, share, jax.random.key(seed)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _shown(net, objective, params, batch, share, rng):
    return own_tokens(net, objective, params, net.encode(params, batch.source), batch, share=share, rng=rng)


def predictions(net, params, batch, tokens):
    """The likeliest token [B, T] that is no special one, at every row of the masked target."""
    logits = np.array(tiny.project(net, params, tiny.nar_rows(net, params, batch.source, tokens)))
    logits[..., [0, 1, 2, 4]] = -np.inf
    return logits.argmax(-1)


@pytest.mark.parametrize("chunk", [0, 8])
def test_all_masks_or_none_or_some_read_the_prediction(chunk):
    net, params = tiny.model()
    batch = tiny.batch()
    tokens = np.array(jax.jit(masked_tokens, static_argnums=1)(batch, net.specials))
    masked = tokens == net.specials.mask
    expected = np.where(masked, predictions(net, params, batch, tokens), -1)
    np.testing.assert_array_equal(shown_of(net, params, batch, 1.0, projection_rows=chunk), expected)
    assert (shown_of(net, params, batch, 0.0) == -1).all()
    some = [shown_of(net, params, batch, 0.5, seed) for seed in range(20)]
    assert all(((one == expected) | (one == -1)).all() for one in some)
    assert 0.35 < np.mean([(one >= 0).sum() / masked.sum() for one in some]) < 0.65


def test_the_loss_of_rows_that_read_their_prediction():
    net, params = tiny.model()
    batch = tiny.batch()
    divisors = tiny.divisors(net, ObjectiveConfig(name="cmlm"), batch)

    @functools.partial(jax.jit, static_argnums=0)
    def nar_loss(share, rng):
        objective = ObjectiveConfig(name="cmlm", nar_correction=share)
        return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0), rng=rng, terms=TERMS)[1][
            "nll/nar"
        ]

    # All masks replaced: the loss of a batch whose target holds the predictions there, at the labels of the true target.
    full = shown_of(net, params, batch, 1.0)
    tokens = np.where(full >= 0, full, batch.target)
    rows = tiny.nar_rows(net, params, batch.source, tokens, batch.masked)
    log_probs = log_softmax(tiny.project(net, params, rows), axis=-1)
    labels = np.take_along_axis(batch.target, batch.masked, axis=1)
    real = np.arange(batch.masked.shape[1]) < batch.masked_count[:, None]
    expected = -np.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0][real].mean()
    np.testing.assert_allclose(nar_loss(1.0, jax.random.key(0)), expected, rtol=1e-5)
    assert not np.isclose(nar_loss(0.0, jax.random.key(0)), expected, rtol=1e-3)
    # Validation masks as ever.
    np.testing.assert_allclose(nar_loss(1.0, None), nar_loss(0.0, None), rtol=1e-6)


def test_no_gradient_flows_through_the_first_pass():
    """The shown tokens are whole numbers, through which no gradient flows."""
    net, params = tiny.abstract()
    shown = jax.eval_shape(lambda p: _shown(net, ObjectiveConfig(), p, tiny.batch(), 1.0, jax.random.key(0)), params)
    assert shown.dtype == jnp.int32


def test_places_of_the_second_target_are_used():
    net, params = tiny.model()
    batch = tiny.batch()
    other = dataclasses.replace(batch, target=np.array(batch.target)[:, ::-1], parallel_target=batch.target)
    np.testing.assert_array_equal(shown_of(net, params, other, 1.0), shown_of(net, params, batch, 1.0))
