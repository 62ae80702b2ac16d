"""Report of what a run would take: how its parameters are split, its batches, operations and memory.

Only the compiler allocates memory, and nothing is written. Legend: A micro-batches of a step, B rows of a micro-batch,
S source length, T target length, M masked tokens at most.
"""

import collections
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax import parallel, text
from janus_jax.config import Config, ConfigError, only_terms, scheduled
from janus_jax.data import Prepared, TrainBatches, eval_batches
from janus_jax.data.buckets import Bucket
from janus_jax.model import Janus
from janus_jax.model.cost import parameter_count, step_flops
from janus_jax.objective.joint import active_terms, check_two_targets
from janus_jax.train.evaluation import Evaluation
from janus_jax.train.loop import resolve_with_data
from janus_jax.train.step import abstract_state, jit_train_step
from janus_jax.train.trained import select_trained
from janus_jax.types import Batch, TrainState

_MIB, _GIB = 2**20, 2**30
_COUNTED = 20_000  # steps whose terms are counted, drawn at random from more


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step takes on one device. Evaluation and decoding run between steps and are not counted."""

    params: int
    moments: int  # the optimizer's state
    ema: int
    batch: int
    temporary: int  # as the compiler plans it for the largest bucket: activations, logits, and the gradients among them
    gradients: int  # part of `temporary`
    available: int | None  # None: unknown

    @property
    def state(self) -> int:
        """Bytes that stay from step to step."""
        return self.params + self.moments + self.ema

    @property
    def needed(self) -> int:
        """Bytes that must fit into `available`."""
        return self.state + self.batch + self.temporary


@dataclass(frozen=True)
class Forecast:
    """The result of `dry_run`."""

    config: Config  # with its vocabulary size
    mesh: Mesh
    params: Any  # ShapeDtypeStructs with shardings
    buckets: tuple[Bucket, ...]
    largest: Bucket  # the one whose steps have the most operations
    memory: Memory

    @property
    def flops(self) -> float:
        """Operations of a training step on all devices together, mean over the run, as `model.cost` counts them.

        Steps compute the terms that have a weight at them (`ar_first`, `ar_every`, schedules).
        """
        batches, steps = sum(bucket.batches for bucket in self.buckets), self.config.train.steps
        objective, kinds = scheduled(self.config), collections.Counter[tuple[str, ...] | None]()
        for step in np.random.default_rng(0).choice(steps, min(steps, _COUNTED), replace=False):
            kinds[only_terms(self.config) or active_terms(objective, int(step))] += 1
        return sum(
            count * bucket.batches * _flops(self.config, bucket, terms)
            for terms, count in kinds.items()
            for bucket in self.buckets
        ) / (batches * kinds.total())

    def report(self) -> str:
        """The forecast as text."""
        return "\n\n".join(
            [_format_devices(self.mesh), _format_parameters(self), _format_batches(self), _format_memory(self)]
        )

    def check(self) -> None:
        """Raises ConfigError, with the numbers and what to change, if a step doesn't fit into a device's memory."""
        memory = self.memory
        if memory.available is not None and memory.needed > memory.available:
            raise ConfigError(
                f"a training step needs {_gib(memory.needed)} of memory on each device, which has {_gib(memory.available)}: "
                f"{_gib(memory.state)} parameters and optimizer, {_gib(memory.temporary)} temporary. {_remedies(self.config)}"
            )


def dry_run(config: Config, show: Callable[[str], None] = print) -> Forecast:
    """Reports what training would take.

    Args:
      config: the experiment; its data are prepared.
      show: receives the report, before the check whether the run fits.

    Raises:
      ConfigError: the config contradicts the prepared data or the devices, or a step doesn't fit into a device's memory.
      DataError: the data aren't prepared, or there is no batch plan for them.
    """
    prepared = Prepared.open(config.data.prepared, config)
    config = resolve_with_data(config, prepared)
    if prepared.two_targets and not only_terms(config):
        check_two_targets(config.objective)
    mesh = parallel.make_mesh(config.parallel)
    parallel.check_rows(mesh, config.data.batch_multiple)
    buckets = TrainBatches(prepared, config, *parallel.batch_share(mesh)).buckets
    if "valid" in prepared.splits:
        eval_batches(prepared, config, "valid", *parallel.batch_share(mesh))  # raises errors of the batch plan
    largest = max(buckets, key=lambda bucket: _flops(config, bucket))
    net = Janus(config.model, text.load(prepared.tokenizer_bytes).specials)
    with jax.set_mesh(mesh):
        state = abstract_state(net, config, mesh)
        Evaluation(net, config, prepared, text.load(prepared.tokenizer_bytes), mesh).check(state.params)
        batch = abstract_batch(config, mesh, largest, prepared.two_targets)
        temporary = _temporary_bytes(net, config, mesh, state, batch)
    params = parallel.device_bytes(state.params)
    trained = jax.eval_shape(lambda p: select_trained(p, config), state.params)
    memory = Memory(
        params=params,
        moments=parallel.device_bytes(state.opt_state),
        ema=parallel.device_bytes(state.ema),
        batch=parallel.device_bytes(batch),
        temporary=temporary,
        gradients=params * _count(trained) // _count(state.params),  # of the same type and split
        available=available_bytes(),
    )
    forecast = Forecast(config, mesh, state.params, buckets, largest, memory)
    if jax.process_index() == 0:
        show(forecast.report())
    forecast.check()
    return forecast


def abstract_batch(config: Config, mesh: Mesh, bucket: Bucket, two_targets: bool = False) -> Batch:
    """A step's batch [A, B, ...] of a bucket as ShapeDtypeStructs with shardings."""
    rows, sharding = (config.train.accumulation, bucket.rows), parallel.batch_sharding(mesh, leading=1)

    def array(*width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, *width), jnp.int32, sharding=sharding)

    second = array(bucket.target_length) if two_targets else None
    return Batch(
        array(bucket.source_length), array(bucket.target_length), array(bucket.masked), array(), array(), second
    )


def available_bytes() -> int | None:
    """Bytes that JAX may use on the smallest device of this process; None where they are unknown.

    CPU devices share the machine's memory in equal parts.
    """
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limits):
        return min(limits)
    if devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return None


def _temporary_bytes(net: Janus, config: Config, mesh: Mesh, state: TrainState, batch: Batch) -> int:
    """Bytes of a device that the compiled step uses in addition to its arguments.

    Raises:
      ConfigError: the compiler says that the step doesn't fit.
    """
    step = jit_train_step(net, config, mesh, jax.tree.map(lambda x: x.sharding, state), only_terms(config))
    try:
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    except jax.errors.JaxRuntimeError as error:
        # The TPU compiler plans the device's memory and fails where that is too small.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"{_remedies(config)} The compiler: {str(error).splitlines()[0]}") from error


def _flops(config: Config, bucket: Bucket, terms: tuple[str, ...] | None = None) -> float:
    """Operations of a step of a bucket that computes these terms; None: all."""
    micro_batch = step_flops(config, bucket.rows, bucket.source_length, bucket.target_length, bucket.masked, terms)
    return config.train.accumulation * micro_batch


def _remedies(config: Config) -> str:
    remat = (
        "" if config.model.remat == "full" else f"set config.model.remat to dots or full (now {config.model.remat}), "
    )
    return (
        f"Lower config.data.tokens_per_batch (now {config.data.tokens_per_batch}) and raise config.train.accumulation (now "
        f"{config.train.accumulation}) by the same factor, {remat}or raise config.parallel.fsdp (now {config.parallel.fsdp})."
    )


def _format_devices(mesh: Mesh) -> str:
    device, axes = mesh.devices.flat[0], " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    processes = jax.process_count()
    return f"{mesh.size} x {device.device_kind} in {processes} process{'es' * (processes > 1)}; mesh {axes}"


def _format_parameters(forecast: Forecast) -> str:
    """A line per parameter; parameters of the same name, shape and split in several layers share a line."""
    groups: dict[tuple, list] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(forecast.params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        key = re.sub(r"layers_\d+", "layers_*", name), leaf.shape, leaf.sharding.spec
        groups.setdefault(key, []).append(leaf)
    rows = [
        (name, len(leaves), " x ".join(map(str, shape)), _format_spec(spec), _mib(parallel.device_bytes(leaves)))
        for (name, shape, spec), leaves in groups.items()
    ]
    memory = forecast.memory
    totals = [
        (f"all parameters: {parameter_count(forecast.params):,} numbers", "", "", "", _mib(memory.params)),
        (f"optimizer state ({forecast.config.optimizer.name})", "", "", "", _mib(memory.moments)),
        ("moving average", "", "", "", _mib(memory.ema)),
    ]
    return _table(("parameter", "arrays", "shape", "split over", "MiB a device"), rows + totals)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _format_batches(forecast: Forecast) -> str:
    all_batches = sum(bucket.batches for bucket in forecast.buckets)
    rows = [
        (
            str(bucket.source_length), bucket.target_length, bucket.masked, bucket.rows, bucket.batches,
            f"{bucket.batches / all_batches:.1%}", f"{_flops(forecast.config, bucket) / 1e12:,.3f}",
        )
        for bucket in forecast.buckets
    ]  # fmt: skip
    header = ("source length", "target length", "masked at most", "rows", "batches an epoch", "share", "TFLOP a step")
    settings = forecast.config.train
    return (
        f"{_table(header, rows)}\n{all_batches // settings.accumulation} steps an epoch, batches a step: {settings.accumulation}; "
        f"{forecast.flops / 1e12:,.3f} TFLOP a step on average, {forecast.flops / forecast.mesh.size / 1e12:,.3f} a device, "
        f"{forecast.flops * settings.steps / 1e15:,.3f} PFLOP in {settings.steps:,} steps: matrix products, forward and backward, "
        "padding included (model/cost.py), not what the compiler computes twice"
    )


def _format_memory(forecast: Forecast) -> str:
    memory, largest = forecast.memory, forecast.largest
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
    """Columns side by side; the first is aligned left, the others right."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join(lines)


def _format_spec(spec: Any) -> str:
    """The mesh axis of each dimension of a PartitionSpec."""
    axes = ["+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in spec]
    return ", ".join(axes) if set(axes) - {"-"} else "whole"


def _mib(size: int) -> str:
    return f"{size / _MIB:,.2f}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
