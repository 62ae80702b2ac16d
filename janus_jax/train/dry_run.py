"""What a run would take, told before it starts: how its parameters are split, its batches, operations and memory.

Nothing is allocated but by the compiler, and nothing is written. Legend: A micro-batches of a step, B rows of a micro-batch,
S source length, T target length, M masked tokens at most.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from janus_jax import parallel, text
from janus_jax.config import Config, ConfigError
from janus_jax.data import Prepared, TrainBatches
from janus_jax.data.buckets import Bucket
from janus_jax.model import Janus
from janus_jax.model.cost import parameter_count, step_flops
from janus_jax.train.loop import resolve_with_data
from janus_jax.train.step import init_state, jit_train_step
from janus_jax.types import Batch, TrainState

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step takes on one device; evaluation and decoding come between steps and are not counted."""

    params: int
    moments: int  # the optimizer's state
    ema: int
    batch: int
    temporary: int  # as the compiler plans it for the largest bucket: activations, logits, and the gradients among them
    gradients: int  # part of `temporary`
    available: int | None  # None: the device doesn't tell

    @property
    def state(self) -> int:
        """What stays from step to step."""
        return self.params + self.moments + self.ema

    @property
    def needed(self) -> int:
        """What must fit into `available`."""
        return self.state + self.batch + self.temporary


@dataclass(frozen=True)
class Forecast:
    """What `dry_run` finds."""

    config: Config  # with its vocabulary size
    mesh: Mesh
    params: Any  # ShapeDtypeStructs with shardings
    buckets: tuple[Bucket, ...]
    largest: Bucket  # of all steps, theirs have the most operations
    memory: Memory

    @property
    def flops(self) -> float:
        """Operations of a training step on all devices together, the mean over an epoch; as `model.cost` counts them."""
        batches = sum(bucket.batches for bucket in self.buckets)
        return sum(bucket.batches * _flops(self.config, bucket) for bucket in self.buckets) / batches

    def report(self) -> str:
        """All of it for a reader."""
        return "\n\n".join([_devices(self.mesh), _parameters(self), _batches(self), _needs(self)])

    def check(self) -> None:
        """Raises ConfigError, with the numbers and what to change, if a step doesn't fit into a device's memory."""
        memory = self.memory
        if memory.available is not None and memory.needed > memory.available:
            raise ConfigError(
                f"a training step needs {_gib(memory.needed)} of memory on each device, which has {_gib(memory.available)}: "
                f"{_gib(memory.state)} parameters and optimizer, {_gib(memory.temporary)} temporary. {_remedies(self.config)}"
            )


def dry_run(config: Config, show: Callable[[str], None] = print) -> Forecast:
    """Tells what training would take.

    Args:
      config: the experiment, its data prepared.
      show: gets the report, before it is judged whether the run fits.

    Raises:
      ConfigError: the config contradicts the prepared data or the devices, or a step doesn't fit into a device's memory.
      DataError: the data aren't prepared, or there is no batch plan for them.
    """
    prepared = Prepared.open(config.data.prepared, config)
    config = resolve_with_data(config, prepared)
    mesh = parallel.make_mesh(config.parallel)
    parallel.check_rows(mesh, config.data.batch_multiple)
    buckets = TrainBatches(prepared, config, *parallel.batch_share(mesh)).buckets
    largest = max(buckets, key=lambda bucket: _flops(config, bucket))
    net = Janus(config.model, text.load(prepared.tokenizer_bytes).specials)
    with jax.set_mesh(mesh):
        state = abstract_state(net, config, mesh)
        batch = abstract_batch(config, mesh, largest)
        temporary = _temporary(net, config, mesh, state, batch)
    params = parallel.device_bytes(state.params)
    memory = Memory(
        params=params,
        moments=parallel.device_bytes(state.opt_state),
        ema=parallel.device_bytes(state.ema),
        batch=parallel.device_bytes(batch),
        temporary=temporary,
        gradients=params,  # of the same type and split alike
        available=available_bytes(),
    )
    forecast = Forecast(config, mesh, state.params, buckets, largest, memory)
    if jax.process_index() == 0:
        show(forecast.report())
    forecast.check()
    return forecast


def abstract_state(net: Janus, config: Config, mesh: Mesh) -> TrainState:
    """The training state as ShapeDtypeStructs with the shardings that it has on a mesh."""
    shapes = jax.eval_shape(lambda: init_state(net, config))
    shardings = parallel.state_shardings(mesh, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def abstract_batch(config: Config, mesh: Mesh, bucket: Bucket) -> Batch:
    """A step's batch [A, B, ...] of a bucket, likewise."""
    rows, sharding = (config.train.accumulation, bucket.rows), parallel.batch_sharding(mesh, leading=1)

    def of(*width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, *width), jnp.int32, sharding=sharding)

    return Batch(of(bucket.source_length), of(bucket.target_length), of(bucket.masked), of(), of())


def available_bytes() -> int | None:
    """Memory of each device of this process, of the smallest: what its runtime lets JAX have. CPU devices, which share the
    machine's memory, have equal parts of it. None where it is not known."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limits):
        return min(limits)
    if devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return None


def _temporary(net: Janus, config: Config, mesh: Mesh, state: TrainState, batch: Batch) -> int:
    """Bytes of a device that the compiled step uses beside its arguments."""
    step = jit_train_step(net, config, mesh, jax.tree.map(lambda x: x.sharding, state))
    try:
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    except jax.errors.JaxRuntimeError as error:
        # TPU's compiler plans the device's memory, and says itself that it is too little.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"{_remedies(config)} The compiler: {str(error).splitlines()[0]}") from error


def _flops(config: Config, bucket: Bucket) -> float:
    """Of a step of a bucket."""
    of_one = step_flops(config, bucket.rows, bucket.source_length, bucket.target_length, bucket.masked)
    return config.train.accumulation * of_one


def _remedies(config: Config) -> str:
    remat = (
        "" if config.model.remat == "full" else f"set config.model.remat to dots or full (now {config.model.remat}), "
    )
    return (
        f"Lower config.data.tokens_per_batch (now {config.data.tokens_per_batch}) and raise config.train.accumulation (now "
        f"{config.train.accumulation}) by the same factor, {remat}or raise config.parallel.fsdp (now {config.parallel.fsdp})."
    )


def _devices(mesh: Mesh) -> str:
    device, axes = mesh.devices.flat[0], " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    processes = jax.process_count()
    return f"{mesh.size} x {device.device_kind} in {processes} process{'es' * (processes > 1)}; mesh {axes}"


def _parameters(found: Forecast) -> str:
    """Every parameter; layers whose parameters are alike share a line."""
    groups: dict[tuple, list] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found.params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        key = re.sub(r"layers_\d+", "layers_*", name), leaf.shape, leaf.sharding.spec
        groups.setdefault(key, []).append(leaf)
    rows = [
        (name, len(leaves), " x ".join(map(str, shape)), _spec(spec), _mib(parallel.device_bytes(leaves)))
        for (name, shape, spec), leaves in groups.items()
    ]
    memory = found.memory
    totals = [
        (f"all parameters: {parameter_count(found.params):,} numbers", "", "", "", _mib(memory.params)),
        (f"optimizer state ({found.config.optimizer.name})", "", "", "", _mib(memory.moments)),
        ("moving average", "", "", "", _mib(memory.ema)),
    ]
    return _table(("parameter", "arrays", "shape", "split over", "MiB a device"), rows + totals)


def _batches(found: Forecast) -> str:
    all_batches = sum(bucket.batches for bucket in found.buckets)
    rows = [
        (
            str(bucket.source_length), bucket.target_length, bucket.masked, bucket.rows, bucket.batches,
            f"{bucket.batches / all_batches:.1%}", f"{_flops(found.config, bucket) / 1e12:,.3f}",
        )
        for bucket in found.buckets
    ]  # fmt: skip
    header = ("source length", "target length", "masked at most", "rows", "batches an epoch", "share", "TFLOP a step")
    settings = found.config.train
    return (
        f"{_table(header, rows)}\n{all_batches // settings.accumulation} steps an epoch of {settings.accumulation} batches "
        f"each; {found.flops / 1e12:,.3f} TFLOP a step on average, {found.flops / found.mesh.size / 1e12:,.3f} a device, "
        f"{found.flops * settings.steps / 1e15:,.3f} PFLOP in {settings.steps:,} steps: matrix products, forward and backward, "
        "padding included (model/cost.py), not what the compiler computes twice"
    )


def _needs(found: Forecast) -> str:
    memory, largest = found.memory, found.largest
    rows = [
        ("parameters", _mib(memory.params)),
        ("optimizer state", _mib(memory.moments)),
        ("moving average", _mib(memory.ema)),
        ("batch", _mib(memory.batch)),
        (f"temporary, gradients ({_mib(memory.gradients)}) among it", _mib(memory.temporary)),
        ("all", _mib(memory.needed)),
        ("a device has", "unknown" if memory.available is None else _mib(memory.available)),
    ]
    title = f"a step of source length {largest.source_length}, target length {largest.target_length}"
    return _table((title, "MiB a device"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns side by side, the first to the left."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join(lines)


def _spec(spec: Any) -> str:
    """A PartitionSpec in words: the mesh axis of each dimension."""
    axes = ["+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in spec]
    return ", ".join(axes) if set(axes) - {"-"} else "whole"


def _mib(size: int) -> str:
    return f"{size / _MIB:,.2f}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
