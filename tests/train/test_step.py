"""The training step: accumulation, guard, optimizers, schedules, moving average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import OptimizerConfig, resolve
from janus_jax.train.optimizer import learning_rate, make_optimizer
from janus_jax.train.step import _moving_average, make_train_step, state_from_params
from tests import tiny


def setup(objective="janus", **optimizer):
    net, params = tiny.model(encoder_layers=1, decoder_layers=1)
    config = resolve({"objective": {"name": objective}, "optimizer": {"warmup_steps": 1, **optimizer}})
    config = dataclasses.replace(config, model=net.config)
    return net, config, start(config, params)


def start(config, params):
    return jax.jit(functools.partial(state_from_params, config))(params)


@functools.cache
def compiled(net, config):
    """The training step, which tests of equal settings share."""
    return jax.jit(make_train_step(net, config))


def stack(*parts):
    return jax.tree.map(lambda *x: np.stack(x), *parts)


def test_micro_batches_give_the_step_of_the_whole_batch():
    net, config, state = setup()
    batch = tiny.batch(rows=6)
    halves = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 3), slice(3, 6))]
    step = compiled(net, config)
    (one, metrics), (two, other) = step(state, stack(batch)), step(state, stack(*halves))
    for name in metrics:
        np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5, atol=1e-7, err_msg=name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(one.params):
        name = jax.tree_util.keystr(path)
        if "k_proj" in name and "bias" in name:
            continue  # its true gradient is zero, so that Adam turns rounding into steps
        expected = two.params
        for key in path:
            expected = expected[key.key]
        np.testing.assert_allclose(leaf, expected, atol=1e-5, err_msg=name)


def test_a_bad_step_changes_nothing_but_the_step_count():
    net, config, state = setup("ar", ema_decay=0.75)
    table = np.array(state.params["embed_tokens"]["embedding"])
    table[7] = np.nan
    state.params["embed_tokens"]["embedding"] = table
    new, metrics = compiled(net, config)(state, stack(tiny.batch()))
    assert float(metrics["finite"]) == 0.0
    assert int(new.step) == 1
    for before, after in zip(
        jax.tree.leaves((state.params, state.opt_state, state.ema)),
        jax.tree.leaves((new.params, new.opt_state, new.ema)),
        strict=True,
    ):
        np.testing.assert_array_equal(before, after)


def test_the_moving_average_moves():
    net, config, state = setup("ar", ema_decay=0.75)
    state, step = jax.device_get(state), compiled(net, config)
    # 9 / (10 + step) of the new parameters, later 1 - ema_decay.
    for done, share in ((0, 0.9), (8, 0.5), (26, 0.25), (1000, 0.25)):
        new, _ = jax.device_get(step(dataclasses.replace(state, step=np.int32(done)), stack(tiny.batch())))
        expected = jax.tree.map(lambda old, p: (1 - share) * old + share * p, state.params, new.params)  # noqa: B023
        assert tiny.largest_difference(new.ema, expected) < 1e-6


def test_a_slow_moving_average_has_no_bias():
    """With optax.incremental_update the average comes out more than 1e-4 too small."""
    decay, rng = 0.9999, np.random.default_rng(0)
    params = (0.05 + 0.005 * rng.standard_normal((20_000, 8))).astype(np.float32)
    late = jnp.int32(10**6)
    update = jax.jit(
        lambda ema, rows: jax.lax.scan(lambda e, p: (_moving_average(decay, late, e, p), None), ema, rows)[0]
    )
    weights = (1 - decay) * decay ** np.arange(len(params) - 1)[::-1]
    expected = decay ** (len(params) - 1) * params[0].astype(np.float64) + weights @ params[1:].astype(np.float64)
    np.testing.assert_allclose(update(params[0], params[1:]), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def loss_with_dropout():
    """A function: step, micro-batches -> the loss of a model with dropout."""
    net, params = tiny.model(dropout=0.3, encoder_layers=1, decoder_layers=1)
    config = dataclasses.replace(resolve({"objective": {"name": "ar"}}), model=net.config)
    step, state = compiled(net, config), start(config, params)
    return lambda n, *parts: float(step(dataclasses.replace(state, step=np.int32(n)), stack(*parts))[1]["loss/total"])


def test_dropout_follows_the_step(loss_with_dropout):
    parts = tiny.batch(), tiny.batch(seed=1)
    losses = [loss_with_dropout(n, *parts) for n in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_each_micro_batch_has_a_dropout_key_of_its_own(loss_with_dropout):
    parts = tiny.batch(), tiny.batch(seed=1)
    # With one key for both, the order of two micro-batches would not matter.
    assert abs(loss_with_dropout(0, *parts) / loss_with_dropout(0, *parts[::-1]) - 1) > 1e-5


def test_the_learning_rate_of_a_step_is_that_of_the_steps_before_it():
    net, config, state = setup("ar", ema_decay=0.75)
    state, step = jax.device_get(state), compiled(net, config)
    changes = []
    for done, rate in ((0, 1e-7), (1, 5e-4), (4, 2.5e-4)):  # one step of warm-up
        new, metrics = jax.device_get(step(dataclasses.replace(state, step=np.int32(done)), stack(tiny.batch())))
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        changes.append(jax.tree.map(lambda old, p: (old - p) / rate, state.params, new.params))  # noqa: B023
    # From the same state, the parameters move in proportion to the rate.
    assert tiny.largest_difference(changes[1], changes[2]) < 2e-3


def test_schedules():
    def rates(steps, **settings):
        defaults = {"learning_rate": 1.0, "warmup_steps": 10, "warmup_init": 0.0}
        rate = learning_rate(OptimizerConfig(**defaults | settings), 110)
        return jax.jit(jax.vmap(rate))(np.array(steps, np.int32))

    np.testing.assert_allclose(rates([0, 5, 10, 40], schedule="inverse_sqrt"), [0, 0.5, 1, 0.5])
    np.testing.assert_allclose(
        rates([5, 10, 60, 110], schedule="polynomial", end_learning_rate=0.2), [0.5, 1, 0.6, 0.2]
    )
    np.testing.assert_allclose(
        rates([10, 60, 110], schedule="polynomial", end_learning_rate=0.2, power=2.0), [1, 0.4, 0.2], rtol=1e-6
    )
    np.testing.assert_allclose(rates([5, 10, 60, 110], schedule="cosine"), [0.5, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(rates([10, 60, 110], schedule="cosine", end_learning_rate=0.2), [1, 0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(rates([0, 5, 10, 99], schedule="constant", warmup_init=0.5), [0.5, 0.75, 1, 1])


def test_adam_follows_its_formula():
    optimizer = make_optimizer(OptimizerConfig(name="adam", b1=0.7, b2=0.9, eps=0.1))
    gradients = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    state, update = optimizer.init(gradients[0]), jax.jit(optimizer.update)
    mean = square = np.zeros(4)
    for number, gradient in enumerate(gradients, 1):
        change, state = update(gradient, state)
        mean, square = 0.7 * mean + 0.3 * gradient, 0.9 * square + 0.1 * gradient**2
        expected = mean / (1 - 0.7**number) / (np.sqrt(square / (1 - 0.9**number)) + 0.1)
        np.testing.assert_allclose(change, expected, rtol=1e-5)


def test_clipping_and_decay():
    def first_update(**settings):
        optimizer = make_optimizer(OptimizerConfig(name="adamw", weight_decay=0.5, **settings))
        params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
        gradients = jax.tree.map(lambda p: 100.0 * p, params)
        return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradients, params)

    update = first_update(clip_norm=1.0, eps=1.0)
    clipped = 1 / np.sqrt(6)  # six equal gradients of norm 1; Adam's first step is g / (|g| + eps)
    np.testing.assert_allclose(update["bias"], clipped / (clipped + 1) + 0.5, rtol=1e-4)
    update = first_update(decay_all=False)
    np.testing.assert_allclose(update["bias"], 1.0, rtol=1e-4)
    np.testing.assert_allclose(update["kernel"], 1.5, rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimizers_lower_the_loss(name):
    net, config, state = setup("ar", name=name, weight_decay=0.0, learning_rate=3e-3)
    step = compiled(net, config)
    batch = stack(tiny.batch())
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/total"]))
    assert losses[-1] < losses[0]
