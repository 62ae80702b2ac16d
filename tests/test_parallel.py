"""The mesh, the sharding rules, and that they never change what training computes.

Batches are split over data x fsdp, parameters over fsdp and tensor.
"""

import dataclasses
import re

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from janus_jax import parallel
from janus_jax.config import Config, ConfigError, ObjectiveConfig, OptimizerConfig, ParallelConfig, TrainConfig
from janus_jax.model import Janus
from janus_jax.train.step import init_state, jit_eval_step, jit_train_step

STEPS = 10
SINGLE = (1, 1, 1)


@pytest.fixture(scope="module")
def net():
    return tiny.model(dropout=0.1, encoder_layers=1)[0]


@pytest.fixture(scope="module")
def config(net):
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=3, schedule="constant", ema_decay=0.9)
    return Config(model=net.config, optimizer=optimizer, train=TrainConfig(steps=STEPS))


def mesh_of(sizes):
    return parallel.make_mesh(ParallelConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


def trained(net: Janus, config: Config, sizes):
    """Losses of ten steps, the state after them as numpy, the sharded state, an evaluation, the step's program."""
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: init_state(net, config))
        shardings = parallel.state_shardings(mesh, shapes)
        state = jax.jit(lambda: init_state(net, config), out_shardings=shardings)()
        step, losses = jit_train_step(net, config, mesh, shardings), []
        for number in range(STEPS):
            batch = jax.tree.map(lambda x: np.asarray(x)[None], tiny.batch(rows=8, seed=number))
            placed = parallel.put_batch(mesh, batch, leading=1)
            if not number:
                step = step.lower(state, placed).compile()
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss/total"]))
        batch = jax.tree.map(np.asarray, tiny.batch(rows=8, seed=99))
        evaluation = jit_eval_step(net, config, mesh)(state.params, parallel.put_batch(mesh, batch))
        return losses, jax.device_get(state), state, jax.device_get(evaluation), step.as_text()


@pytest.fixture(scope="module")
def single(net, config):
    return trained(net, config, SINGLE)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_eight_devices_train_as_one_does(net, config, single, sizes):
    assert_same_training(trained(net, config, sizes), single, sizes)


def test_eight_devices_train_ctc_as_one_does(config):
    net = tiny.model(dropout=0.1, encoder_layers=1, ctc_ratio=1.5)[0]
    config = dataclasses.replace(
        config, model=net.config, objective=ObjectiveConfig(name="janus_ctc", projection_rows=32)
    )
    sizes = (2, 2, 2)
    assert_same_training(trained(net, config, sizes), trained(net, config, SINGLE), sizes)


def assert_same_training(found, single, sizes):
    losses, state, sharded, evaluation, program = found
    np.testing.assert_allclose(losses, single[0], rtol=1e-5)
    assert np.ptp(losses) > 1e-3
    for key, value in single[3].items():
        np.testing.assert_allclose(evaluation[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    for tree in ("params", "ema"):
        for path, expected in jax.tree_util.tree_leaves_with_path(getattr(single[1], tree)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found = getattr(state, tree)
            for key in path:
                found = found[key.key]
            if not name.endswith("k_proj/bias"):  # its true gradient is zero: Adam turns rounding into steps
                np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0, err_msg=name)
    kernel = sharded.params["decoder"]["layers_0"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size * sizes[1] * sizes[2] == kernel.size
    assert len(kernel.sharding.device_set) == 8
    # Weights may be gathered, rows of the batch never: they have three axes or more.
    assert "all-to-all(" not in program
    assert re.findall(r"= \w+\[[0-9]+,[0-9]+,[0-9,]+\]\S* all-gather\(", program) == []
    assert ("all-gather(" in program) == (sizes[1] > 1)


def test_every_parameter_has_a_rule_and_moments_follow(net, config):
    shapes = jax.eval_shape(lambda: init_state(net, config))
    specs = parallel.param_specs(shapes.params)
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    assert len(jax.tree.leaves(specs, is_leaf=is_spec)) == len(jax.tree.leaves(shapes.params))
    assert specs["embed_tokens"]["embedding"] == PartitionSpec("tensor", "fsdp")
    shardings = parallel.state_shardings(mesh_of((2, 2, 2)), shapes)
    flat = {jax.tree_util.keystr(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(shardings)}
    kernels = {spec for path, spec in flat.items() if "fc2" in path and "kernel" in path}
    assert kernels == {PartitionSpec("tensor", "fsdp")}  # of params, ema and both moments
    assert sum("fc2" in path and "kernel" in path for path in flat) == 3 * 4
    # Biases of out_proj and norms are on every device.
    assert all(spec == PartitionSpec() for path, spec in flat.items() if "layer_norm" in path)


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = mesh_of((1, 2, 4))
    params = {"fc1": {"kernel": jax.ShapeDtypeStruct((6, 10), np.float32)}}
    assert parallel.state_shardings(mesh, params)["fc1"]["kernel"].spec == PartitionSpec("fsdp", None)


def test_a_parameter_without_a_rule_is_an_error():
    shapes = {"decoder": {"gate": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}}}
    message = r"no sharding rule matches (parameter )?decoder/gate/kernel \(2, 3\); add one to parallel\.RULES"
    with pytest.raises(ValueError, match=message):
        parallel.param_specs(shapes)
    with pytest.raises(ValueError, match=message):
        parallel.state_shardings(mesh_of((8, 1, 1)), shapes)


@pytest.mark.parametrize(
    ("sizes", "expected"), [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, -1), (1, 1, 8)), ((4, 2, 1), (4, 2, 1))]
)  # fmt: skip
def test_mesh_sizes(sizes, expected):
    assert tuple(parallel.make_mesh(ParallelConfig(*sizes)).shape.values()) == expected


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (4, 1, 1), (-1, 16, 1)])
def test_axes_that_do_not_give_the_devices_are_an_error(sizes):
    with pytest.raises(
        ConfigError, match=r"config\.parallel: data .* does not give the 8 devices at hand; set one axis to -1"
    ):
        parallel.make_mesh(ParallelConfig(*sizes))


def test_rows_that_do_not_divide_are_an_error():
    mesh = mesh_of((2, 2, 2))
    parallel.check_rows(mesh, 8)
    with pytest.raises(
        ConfigError, match=r"config\.data\.batch_multiple: 6 rows do not divide over data x fsdp = 4 devices"
    ):
        parallel.check_rows(mesh, 6)


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = mesh_of((2, 2, 2))
    batch = jax.tree.map(np.asarray, tiny.batch(rows=8))
    placed = parallel.put_batch(mesh, batch)
    for field in dataclasses.fields(batch):
        array, original = getattr(placed, field.name), getattr(batch, field.name)
        assert array.addressable_shards[0].data.shape == (2, *original.shape[1:])
        np.testing.assert_array_equal(array, original)


def test_constrain_needs_no_mesh():
    x = np.ones((2, 3))
    assert parallel.constrain(x, parallel.BATCH) is x
