"""`train.only` and adapters: what is not named stays bitwise as it is, and the AR half computes what it did before."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import ConfigError, resolve
from janus_jax.decode import trained_modes
from janus_jax.model import Janus
from janus_jax.objective.joint import loss
from janus_jax.train.step import make_train_step, state_from_params
from tests import tiny

PATTERN = "adapter|embed_ctc_positions|embed_tokens/blank"


def setup(only=PATTERN, **optimizer):
    net, params = tiny.model(encoder_layers=1, ctc_ratio=2.0, ctc_positions="own", parallel_adapter_rank=3)
    config = resolve(
        {
            "init_from": "elsewhere",
            "optimizer": {"warmup_steps": 0, "learning_rate": 0.01, **optimizer},
            "train": {"only": only},
            "model": {"ctc_ratio": 2.0},
            "objective": {"name": "janus_ctc", "weights": {"ar": 0.0, "kl_ar_ctc": 0.0}},
        }
    )
    config = dataclasses.replace(config, model=net.config)
    return net, config, params


def named(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def after_steps(net, config, params, count=3):
    batch = jax.tree.map(lambda x: x[None], tiny.batch())
    step, state = jax.jit(make_train_step(net, config)), jax.jit(functools.partial(state_from_params, config))(params)
    metrics = []
    for _ in range(count):
        state, values = step(state, batch)
        metrics.append(values)
    return jax.device_get((state, metrics))


@functools.partial(jax.jit, static_argnums=0)
def ar_half(net, params, batch):
    return net.project(params, net.ar_rows(params, net.encode(params, batch.source), batch.target))


@functools.partial(jax.jit, static_argnums=0)
def gap_rows(net, params, batch, tokens):
    """The NAR row and the AUX row of the one mask in each target, each from a pass of its own family."""
    encoded = net.encode(params, batch.source)
    _, cache = net.init_gaps(params, encoded, tokens, 1)
    nar = net.nar_rows(params, encoded, tokens, batch.masked)
    return nar, net.aux_step(params, batch.target[:, :1], cache)[0]


@pytest.fixture(scope="module")
def trained():
    """A model, its first parameters, the state and the metrics after some steps with weight decay on."""
    net, config, params = setup(ema_decay=0.9, weight_decay=0.1)
    return net, params, *after_steps(net, config, params)


def test_only_the_named_parameters_change(trained):
    net, params, state, metrics = trained
    assert float(metrics[-1]["loss/ctc"]) < float(metrics[0]["loss/ctc"])
    before, blank = named(params), net.blank
    for tree in (state.params, state.ema):
        for name, leaf in named(tree).items():
            if name == "embed_tokens/embedding":
                np.testing.assert_array_equal(np.delete(leaf, blank, 0), np.delete(before[name], blank, 0))
                assert (leaf[blank] != before[name][blank]).any()
            elif re.search(PATTERN, name):
                assert (leaf != before[name]).any(), name
            else:
                np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    # The optimizer keeps moments of the named parameters alone.
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert held < sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_ar_half_stays_bitwise_and_the_ctc_half_changes(trained):
    net, params, state, _ = trained
    batch = tiny.batch()
    before, after = (np.array(ar_half(net, p, batch)) for p in (params, state.params))
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(*(tiny.source_rows(net, p, batch, "ctc")[0] for p in (params, state.params)))
    # A model without adapters and without CTC has the same AR half.
    plain = Janus(dataclasses.replace(net.config, parallel_adapter_rank=0, ctc_ratio=0.0), net.specials)
    np.testing.assert_array_equal(
        np.array(ar_half(plain, state.params, batch))[..., : net.blank], before[..., : net.blank]
    )


def test_the_joint_pass_adapts_all_rows_but_those_of_ar(trained):
    net, _, state, _ = trained
    batch = tiny.batch()
    families = ("ar", "nar", "aux", "ctc")
    without = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.zeros_like(leaf) if "up" in str(path[-2]) else leaf, state.params
    )
    joint, plain = (jax.device_get(tiny.joint_rows(net, p, batch, families)) for p in (state.params, without))
    np.testing.assert_allclose(joint["ar"], plain["ar"], atol=1e-6)
    for name in families[1:]:
        assert not np.allclose(joint[name], plain[name], atol=1e-3), name
    # Passes of one family alone adapt the same rows.
    alone, real = jax.device_get(tiny.source_rows(net, state.params, batch, "ctc"))
    np.testing.assert_allclose(joint["ctc"][real], alone[real], atol=2e-5)
    tokens = np.where(np.arange(8) == 2, net.specials.mask, batch.target)
    one = dataclasses.replace(batch, masked=np.full((4, 1), 2), masked_count=np.ones(4, np.int32))
    rows = tiny.joint_rows(net, state.params, one, ("nar", "aux"))
    nar, aux = gap_rows(net, state.params, one, tokens)
    np.testing.assert_allclose(nar, rows["nar"], atol=2e-5)
    np.testing.assert_allclose(aux, rows["aux"], atol=2e-5)


def test_gradients_of_the_named_parameters_are_those_of_the_whole_model():
    net, config, params = setup(only="layers_1/.*_adapter/up/kernel")
    batch = tiny.batch()
    divisors = tiny.divisors(net, config.objective, batch)

    def total(params):
        return loss(net, config.objective, params, batch, divisors=divisors, step=jnp.int32(0), terms=("ctc",))[0]

    expected = {
        name: leaf
        for name, leaf in named(jax.jit(jax.grad(total))(params)).items()
        if re.search(config.train.only, name)
    }
    # Adam's first step is the sign of the gradient times the rate.
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=0.0, eps=1e-12))
    state, _ = after_steps(net, config, params, count=1)
    for name, leaf in named(state.params).items():
        moved = np.sign(named(params)[name] - leaf)
        np.testing.assert_array_equal(moved, np.sign(expected[name]) if name in expected else 0 * leaf, err_msg=name)
    assert len(expected) == 8


def test_unusable_patterns_are_refused_in_the_config():
    with pytest.raises(ConfigError, match=r"config.train.only: .*no regular expression"):
        resolve({"train": {"only": "("}, "init_from": "x"})


def test_a_frozen_half_counts_as_trained():
    _, config, _ = setup()
    assert trained_modes(config) == ("ar", "ctc", "speculative")
    whole = dataclasses.replace(config, train=dataclasses.replace(config.train, only=""))
    assert trained_modes(whole) == ("ctc",)


def test_a_pattern_that_matches_nothing_is_refused():
    _, config, params = setup(only="adaptor")
    with pytest.raises(ConfigError, match="no parameter's name matches 'adaptor'; some names: decoder/"):
        state_from_params(config, params)
