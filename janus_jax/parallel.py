"""Devices: start of a process, the mesh, sharding rules of parameters, and sharding of batches.

A mesh has the axes `data`, `fsdp` and `tensor`. Batches are split over data x fsdp; parameters over fsdp and tensor, by
the first rule whose pattern matches the parameter's path.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from janus_jax import host_memory
from janus_jax.config import ConfigError, ParallelConfig
from janus_jax.processes import Rendezvous, connect

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# (pattern, spec); the first pattern that matches a parameter's path is used.
# Kernels are [in, out]; embeddings [rows, D].
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embed_tokens/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"(embed_positions|embed_ctc_positions|embed_dag_positions|embed_length)/embedding$", PartitionSpec(None, "fsdp")),
    (r"(q_proj|k_proj|v_proj|fc1|dag_links/gate)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(q_proj|k_proj|v_proj|fc1|dag_links/gate)/bias$", PartitionSpec("tensor")),
    (r"(out_proj|fc2)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(out_proj|fc2)/bias$", PartitionSpec()),
    (r"draft_heads/start/embedding$", PartitionSpec()),
    (r"draft_heads/(query|inner)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"draft_heads/key/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"draft_heads/inner/bias$", PartitionSpec("tensor")),
    (r"draft_heads/outer/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(layer_norm|layernorm_embedding)/(scale|bias)$", PartitionSpec()),
    (r"(^|/)embed_tokens/blank$", PartitionSpec()),  # a row of the table, where train.only names it
    (r"_adapter/down/kernel$", PartitionSpec("fsdp", None)),
    (r"_adapter/up/kernel$", PartitionSpec(None, "fsdp")),
)


def start(
    cache_dir: str | os.PathLike[str] | None = None, rendezvous: Rendezvous | None = None, *, alone: bool = False
) -> None:
    """Prepares JAX: connects the processes of the run, if there are several, and sets the compile cache on disk.

    The cache directory is `cache_dir`, else $JANUS_JAX_CACHE, else ~/.cache/janus_jax; an empty $JANUS_JAX_CACHE
    turns it off. Safe to call twice.

    Args:
      cache_dir: see above.
      rendezvous: where the processes meet, see `processes.connect`.
      alone: this process joins no others, whatever the environment names: it may be that of a training run.

    Raises:
      ConfigError: see `processes.connect`.
    """
    host_memory.keep_freed_memory()
    if not alone:
        connect(rendezvous)
    default = os.environ.get("JANUS_JAX_CACHE", Path.home() / ".cache/janus_jax")
    directory = default if cache_dir is None else cache_dir
    if str(directory):
        jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def make_mesh(config: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh [data, fsdp, tensor] over `devices` (default: all).

    Raises:
      ConfigError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in AXES}
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if -1 in sizes.values():
        free = next(axis for axis, size in sizes.items() if size == -1)
        sizes[free] = max(1, len(devices) // known)
    shape = tuple(sizes.values())
    if int(np.prod(shape)) != len(devices):
        raise ConfigError(
            f"config.parallel: {' x '.join(f'{a} {s}' for a, s in sizes.items())} does not give the {len(devices)} "
            "devices at hand; set one axis to -1 or change their product"
        )
    # Auto axes: with Explicit axes, the default of jax.make_mesh, JAX rejects embedding look-ups.
    return Mesh(_arrange(shape, list(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, int, int], devices: list[jax.Device]) -> np.ndarray:
    """The devices in the shape of the mesh; neighbouring devices lie along its last axes."""
    if devices[0].platform != "tpu":
        # Sorted by host. jax.make_mesh refuses several hosts of GPUs: it treats each host as a slice of TPUs.
        return np.array(sorted(devices, key=lambda device: (device.process_index, device.id))).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices)
    if shape[0] % slices:
        raise ConfigError(
            f"config.parallel.data: {shape[0]} is not a multiple of the {slices} slices; "
            "only the data axis may cross the network between slices"
        )
    return mesh_utils.create_hybrid_device_mesh((shape[0] // slices, *shape[1:]), (slices, 1, 1), devices)


def param_specs(params: Any, rules: tuple[tuple[str, PartitionSpec], ...] = RULES) -> Any:
    """PartitionSpec of each leaf of a parameter tree (arrays or ShapeDtypeStructs).

    Raises:
      ValueError: no rule matches a parameter; the message names it.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        return _matching_rule(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, rules)

    return jax.tree_util.tree_map_with_path(spec, params)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """NamedSharding of each leaf of a training state.

    Parameters are sharded by `RULES`, moments like their parameter; counters are replicated. A dimension whose size is
    no multiple of its mesh axis is not split.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        spec = _matching_rule(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, RULES)
        return NamedSharding(mesh, _divisible_axes(mesh, spec, leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def _matching_rule(name: str, shape: tuple[int, ...], rules: tuple[tuple[str, PartitionSpec], ...]) -> PartitionSpec:
    """The PartitionSpec of the first rule whose pattern matches the name; ValueError if none does."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            return spec
    raise ValueError(f"no sharding rule matches parameter {name} {shape}; add one to parallel.RULES")


def _divisible_axes(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    """The spec without the mesh axes that don't divide their dimension."""
    axes = [
        axis if axis is None or shape[i] % mesh.shape[axis] == 0 else None
        for i, axis in enumerate(tuple(spec)[: len(shape)])
    ]
    return PartitionSpec(*axes)


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of sharded arrays, or of ShapeDtypeStructs with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of arrays [..., B, ...]: the axis B, which follows `leading` unsplit axes, is split over data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), BATCH))


def check_rows(mesh: Mesh, rows: int) -> None:
    """Raises ConfigError unless data x fsdp divides the rows of a batch and the processes can divide them evenly."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise ConfigError(
            f"config.data.batch_multiple: {rows} rows do not divide over data x fsdp = {ways} devices; "
            f"set it to a multiple of {ways}"
        )
    batch_share(mesh)


def batch_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """The index of a process's share of the rows of a batch, and the number of shares.

    If the tensor axis spans several processes, their devices hold the same rows, and they read the same share.

    Args:
      mesh: the mesh of all processes.
      process: index of the process; None: this one.

    Raises:
      ConfigError: the rows of two processes overlap but are not the same.
    """
    parts: dict[int, set[int]] = {}  # process -> parts of the batch that its devices hold
    by_part = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    for part, devices in enumerate(by_part):
        for device in devices:
            parts.setdefault(device.process_index, set()).add(part)
    shares = sorted({tuple(sorted(of_process)) for of_process in parts.values()})
    if sum(map(len, shares)) != len(by_part) or len({len(share) for share in shares}) > 1:
        raise ConfigError(
            "config.parallel: with this arrangement of devices two processes share some rows of a batch and not the others; make "
            "parallel.tensor a multiple or a divisor of the devices of a process"
        )
    process = jax.process_index() if process is None else process
    return shares.index(tuple(sorted(parts[process]))), len(shares)


def put_batch(mesh: Mesh, batch: Any, leading: int = 0) -> Any:
    """This process's share of the rows (numpy, see `batch_share`) as global arrays split over data x fsdp."""
    sharding = batch_sharding(mesh, leading)
    _, shares = batch_share(mesh)

    def put(x: np.ndarray) -> jax.Array:
        shape = (*x.shape[:leading], x.shape[leading] * shares, *x.shape[leading + 1 :])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, batch)


def batch_ways() -> int:
    """The number of parts into which the current mesh (`jax.set_mesh`) splits the rows of a batch; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Splits the leading dimensions of an activation over the mesh axes `axes`; does nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def row_major(x: jax.Array) -> jax.Array:
    """Fixes the order of an array in memory. Without it the compiler may transpose the array again in each step of a loop.

    Does nothing on several devices: a fixed order would gather the array on each of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.empty or mesh.size == 1):
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
