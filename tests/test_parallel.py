"""The mesh and the sharding rules, which never change the results of training.

Batches are split over data x fsdp, parameters over fsdp and tensor.
"""

import contextlib
import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import axes_of, collectives
from janus_jax import parallel
from janus_jax.config import (
    Config,
    ConfigError,
    LossWeights,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)
from janus_jax.model import Janus, padded_vocab
from janus_jax.model.presets import PRESETS
from janus_jax.train.step import init_state, jit_eval_step, jit_train_step
from janus_jax.types import Specials
from tests import tiny
from tests.further import further

STEPS = 10
ROWS = 8
SINGLE = (1, 1, 1)
LAYOUTS = [further((8, 1, 1)), further((1, 8, 1)), further((1, 1, 8)), (2, 2, 2)]
# XLA's partitioner gives this warning if it changes a layout by copying whole arrays to every device.
REMATERIALISES = "Involuntary full rematerialization"


def layout_name(sizes):
    return "x".join(map(str, sizes))


@pytest.fixture(scope="module")
def net():
    # No two sizes are equal, so that a shape in a compiled program is unambiguous: D 16, F 32, V' 48, R 11 to 52.
    return tiny.net(dropout=0.1, encoder_layers=1, heads=8, length_classes=52)


@pytest.fixture(scope="module")
def config(net):
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=3, schedule="constant", ema_decay=0.9)
    # Few rows per chunk, so that each device computes its logits in several chunks.
    return Config(
        model=net.config,
        objective=ObjectiveConfig(projection_rows=8),
        optimizer=optimizer,
        train=TrainConfig(steps=STEPS),
    )


def mesh_of(sizes):
    return parallel.make_mesh(ParallelConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


@contextlib.contextmanager
def without_compile_cache():
    """Disables the compilation cache: a program from the cache would give no warning."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def trained(net: Janus, config: Config, sizes):
    """Losses of ten steps, the state after them as numpy, the sharded state, an evaluation, the text of the program."""
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: init_state(net, config))
        shardings = parallel.state_shardings(mesh, shapes)
        state = jax.jit(lambda: init_state(net, config), out_shardings=shardings)()
        step, losses = jit_train_step(net, config, mesh, shardings), []
        for number in range(STEPS):
            batch = jax.tree.map(lambda x: np.asarray(x)[None], tiny.batch(rows=ROWS, seed=number))
            placed = parallel.put_batch(mesh, batch, leading=1)
            if not number:
                lowered = step.lower(state, placed)
                with contextlib.nullcontext() if sizes == SINGLE else without_compile_cache():
                    step = lowered.compile()
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss/total"]))
        batch = jax.tree.map(np.asarray, tiny.batch(rows=ROWS, seed=99))
        evaluation = jit_eval_step(net, config, mesh)(state.params, parallel.put_batch(mesh, batch))
        return losses, jax.device_get(state), state, jax.device_get(evaluation), step.as_text()


@pytest.fixture(scope="module")
def single(net, config):
    return trained(net, config, SINGLE)


@pytest.mark.parametrize("sizes", LAYOUTS, ids=layout_name)
def test_eight_devices_train_as_one_does(net, config, single, sizes, capfd):
    capfd.readouterr()
    result = trained(net, config, sizes)
    assert REMATERIALISES not in capfd.readouterr().err
    assert_same_training(result, single)
    assert_split(result[2], sizes)
    assert_collectives_are_minimal(result[4], net, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ({"ctc_ratio": 1.5}, {"name": "janus_ctc"}),
        ({"dag_ratio": 1.5}, {"name": "janus_dag"}),
        ({"draft_heads": 2}, {"name": "ar", "weights": LossWeights(heads=1.0)}),
    ],
    ids=["ctc", "dag", "heads"],
)
def test_eight_devices_train_rows_of_the_source_and_draft_heads_as_one_does(config, model, objective, capfd):
    net = tiny.net(dropout=0.1, encoder_layers=1, heads=8, length_classes=52, **model)
    config = dataclasses.replace(config, model=net.config, objective=ObjectiveConfig(**objective, projection_rows=8))
    sizes = (2, 2, 2)
    capfd.readouterr()
    result = trained(net, config, sizes)
    assert REMATERIALISES not in capfd.readouterr().err
    assert_same_training(result, trained(net, config, SINGLE))
    assert_split(result[2], sizes)
    if not net.config.draft_heads:  # these are small: what is sent for them does not matter
        assert_collectives_are_minimal(result[4], net, sizes)


def test_the_warning_of_the_compiler_is_captured(capfd):
    """The tests above need this."""
    mesh = mesh_of((2, 2, 2))
    one = NamedSharding(mesh, PartitionSpec(parallel.AXES))
    other = NamedSharding(mesh, PartitionSpec(None, ("tensor", "data")))
    moved = jax.jit(lambda x: jax.lax.with_sharding_constraint(x * 2.0, other) + 1.0, in_shardings=one)
    with without_compile_cache():
        moved.lower(jax.ShapeDtypeStruct((32, 32), jnp.float32)).compile()
    assert REMATERIALISES in capfd.readouterr().err


def assert_same_training(result, single):
    losses, state, _, evaluation, _ = result
    np.testing.assert_allclose(losses, single[0], rtol=1e-5)
    assert np.ptp(losses) > 1e-3
    for key, value in single[3].items():
        np.testing.assert_allclose(evaluation[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    for tree in ("params", "ema"):
        for path, expected in jax.tree_util.tree_leaves_with_path(getattr(single[1], tree)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            leaf = getattr(state, tree)
            for key in path:
                leaf = leaf[key.key]
            if not name.endswith("k_proj/bias"):  # its true gradient is zero: Adam turns rounding into steps
                np.testing.assert_allclose(leaf, expected, atol=1e-5, rtol=0, err_msg=name)


def assert_split(state, sizes):
    """The rules split parameters, moments and moving average over the devices, and the devices hold nothing else."""
    mesh = dict(zip(parallel.AXES, sizes, strict=True))
    bytes_of = dict.fromkeys(jax.tree.leaves(state)[0].sharding.device_set, 0)
    assert len(bytes_of) == math.prod(sizes)
    kernels = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        ways = math.prod(mesh[axis] for axis in leaf.sharding.spec if axis)
        # Every matrix of the layers, with its moments and moving average, is split over fsdp and tensor.
        if name.endswith(("kernel", "embed_tokens/embedding")):
            assert ways == sizes[1] * sizes[2], name
            kernels += 1
        for shard in leaf.addressable_shards:
            assert shard.data.nbytes * ways == leaf.nbytes, name
            bytes_of[shard.device] += shard.data.nbytes
    assert kernels == 4 * sum(name.endswith(("kernel", "embed_tokens/embedding")) for name in names_of(state.params))
    assert set(bytes_of.values()) == {parallel.device_bytes(state)}


def names_of(tree):
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def assert_collectives_are_minimal(program, net, sizes):
    """The devices of a compiled step send weights, gradients and, under `tensor`, sums of rows, nothing else."""
    mesh = dict(zip(parallel.AXES, sizes, strict=True))
    sent, vocab = collectives(program), padded_vocab(net.config)
    # The vector of CTC's blank, in a table that is split over `tensor`, goes to the devices without it.
    sent = [op for op in sent if op.kind != "collective-permute" or set(op.shapes) != {(1, net.config.d_model)}]
    assert {op.kind for op in sent} <= {"all-reduce", "all-gather"}
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    specs = jax.tree.leaves(parallel.param_specs(shapes), is_leaf=lambda x: isinstance(x, PartitionSpec))
    # Shapes of parameters on the devices of one tensor group: only `fsdp` is gathered.
    weights = {
        tuple(
            size // mesh["tensor"] if axis == "tensor" else size
            for size, axis in zip(leaf.shape, (*spec, None, None), strict=False)
        )
        for leaf, spec in zip(jax.tree.leaves(shapes), specs, strict=True)
    }
    for op in sent:
        axes = axes_of(op.groups, mesh)
        if op.kind == "all-gather":
            assert axes == ("fsdp",), op
            # Only weights are gathered, never rows of the batch.
            assert set(op.shapes) <= weights, op
        if sizes[2] > 1:
            # No device ever has the whole token table or whole logits.
            assert not [shape for shape in op.shapes if vocab in shape], op
        if "tensor" not in axes:
            continue
        # Devices send sums over the parts of a row along `tensor`. Maxima and sums of logits are one number per row.
        assert op.kind == "all-reduce", op
        assert axes == ("tensor",), op
        assert all(vocab // sizes[2] not in shape for shape in op.shapes if len(shape) > 1 and sizes[2] > 1), op
    # Devices reduce a gradient once per step and not once per chunk of rows. Loops only reduce sums of losses and rows.
    in_loops = [op for op in sent if op.times > 1 and "tensor" not in axes_of(op.groups, mesh)]
    assert all(math.prod(shape) <= 1 for op in in_loops for shape in op.shapes), in_loops
    assert any(op.kind == "all-gather" for op in sent) == (sizes[1] > 1)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (2, 2, 2)], ids=layout_name)
def test_bart_large_is_split(sizes):
    net = Janus(PRESETS["bart_large"], Specials())
    shapes = jax.eval_shape(lambda: init_state(net, Config(model=net.config)))
    shardings = parallel.state_shardings(mesh_of(sizes), shapes)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    # Norms, biases and the two position tables are not split in every way.
    assert 1 <= parallel.device_bytes(placed) * sizes[1] * sizes[2] / whole < 1.05


def test_every_parameter_has_a_rule_and_moments_follow(net, config):
    shapes = jax.eval_shape(lambda: init_state(net, config))
    specs = parallel.param_specs(shapes.params)
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    assert len(jax.tree.leaves(specs, is_leaf=is_spec)) == len(jax.tree.leaves(shapes.params))
    assert specs["embed_tokens"]["embedding"] == PartitionSpec("tensor", "fsdp")
    shardings = parallel.state_shardings(mesh_of((2, 2, 2)), shapes)
    flat = {jax.tree_util.keystr(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(shardings)}
    kernels = {spec for path, spec in flat.items() if "fc2" in path and "kernel" in path}
    assert kernels == {PartitionSpec("tensor", "fsdp")}  # for params, ema and both moments
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
    ("sizes", "expected"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, -1), (1, 1, 8)), ((4, 2, 1), (4, 2, 1))],
)
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
    for array, original in zip(jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True):
        assert array.addressable_shards[0].data.shape == (2, *original.shape[1:])
        np.testing.assert_array_equal(array, original)


def test_constrain_needs_no_mesh():
    x = np.ones((2, 3))
    assert parallel.constrain(x, parallel.BATCH) is x


def fake_devices(hosts, each, platform="gpu"):
    """Fake devices of several hosts, in an order on which no mesh should depend."""
    devices = [
        types.SimpleNamespace(id=host * each + i, process_index=host, platform=platform, slice_index=host)
        for host in range(hosts)
        for i in range(each)
    ]
    return devices[::-1]


def mesh_stub(sizes, devices):
    """An object with the attributes of a mesh that `batch_share` reads."""
    array = parallel._arrange(sizes, devices)
    return types.SimpleNamespace(devices=array, shape=dict(zip(parallel.AXES, sizes, strict=True)))


@pytest.mark.parametrize(
    ("sizes", "hosts", "each", "shares"),
    [
        ((8, 1, 1), 2, 4, [(0, 2), (1, 2)]),
        ((2, 2, 2), 2, 4, [(0, 2), (1, 2)]),
        ((1, 8, 1), 4, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        # The tensor axis runs through two hosts, which read the same rows.
        ((2, 1, 4), 4, 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), 2, 4, [(0, 1), (0, 1)]),
    ],
)
def test_hosts_of_gpus_form_a_mesh_and_share_the_rows(sizes, hosts, each, shares):
    mesh = mesh_stub(sizes, fake_devices(hosts, each))
    assert [parallel.batch_share(mesh, process) for process in range(hosts)] == shares
    last = [device.id for device in mesh.devices.reshape(-1, sizes[2])[0]]
    assert last == list(range(sizes[2]))  # neighbours along the tensor axis


def test_hosts_that_share_rows_in_part_are_refused():
    # Three devices a host, four devices a row.
    with pytest.raises(ConfigError, match=r"make parallel\.tensor a multiple or a divisor of the devices of a process"):
        parallel.batch_share(mesh_stub((3, 1, 4), fake_devices(4, 3)), 0)


def test_slices_of_tpus_take_a_part_of_the_data_axis_each():
    devices = fake_devices(2, 4, platform="tpu")
    with pytest.raises(ConfigError, match=r"config\.parallel\.data: 1 is not a multiple of the 2 slices"):
        parallel._arrange((1, 8, 1), devices)
