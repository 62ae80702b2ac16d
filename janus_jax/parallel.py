"""Devices: process start, the mesh, rules that say how parameters are split, and sharding of batches.

A mesh has the axes `data`, `fsdp` and `tensor`. Batches are split over data x fsdp; parameters over fsdp and tensor, by
the first rule whose pattern matches the parameter's path.
"""

import ctypes
import math
import mmap
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from janus_jax.config import ConfigError, ParallelConfig
from janus_jax.processes import Processes, connect

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# (pattern, spec) with the first match deciding. Kernels are [in, out]; embeddings [rows, D].
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embed_tokens/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"(embed_positions|embed_length)/embedding$", PartitionSpec(None, "fsdp")),
    (r"(q_proj|k_proj|v_proj|fc1)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(q_proj|k_proj|v_proj|fc1)/bias$", PartitionSpec("tensor")),
    (r"(out_proj|fc2)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(out_proj|fc2)/bias$", PartitionSpec()),
    (r"(layer_norm|layernorm_embedding)/(scale|bias)$", PartitionSpec()),
)


def start(cache_dir: str | os.PathLike[str] | None = None, run: Processes | None = None) -> None:
    """Prepares JAX for a door: the other processes of the run, if there are any, and the compile cache on disk.

    The cache directory is `cache_dir`, else $JANUS_JAX_CACHE, else ~/.cache/janus_jax; an empty $JANUS_JAX_CACHE
    turns it off. Safe to call twice.

    Raises:
      ConfigError: see `processes.connect`, which `run` goes to.
    """
    _keep_freed_memory()
    connect(run)
    where = cache_dir if cache_dir is not None else os.environ.get("JANUS_JAX_CACHE", Path.home() / ".cache/janus_jax")
    if str(where):
        jax.config.update("jax_compilation_cache_dir", str(Path(where).expanduser() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _keep_freed_memory() -> None:
    """Under glibc: freed memory stays with the process, in huge pages.

    XLA allocates a step's temporary memory anew each step. By default glibc gives such blocks back to the kernel, and
    faulting them in again page by page took a third of a training step (benchmarks/train_step.py). Set
    JANUS_JAX_KEEP_MEMORY=0 to leave the allocator alone. Does nothing where glibc or the kernel's advice is missing.
    """
    global _memory_is_kept
    wanted = os.environ.get("JANUS_JAX_KEEP_MEMORY", "1") != "0"
    if _memory_is_kept or not wanted or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mallopt") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    _memory_is_kept = True
    # malloc.h: no separate mappings (M_MMAP_MAX), no trimming (M_TRIM_THRESHOLD), one heap for all threads (M_ARENA_MAX).
    for parameter, value in ((-4, 0), (-1, -1), (-8, 1)):
        libc.mallopt(parameter, value)
    # Pages of this region become huge when first touched; until then it costs nothing but addresses.
    size, page = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, 2**21
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    region = libc.malloc(size)
    if region:
        start = -(-region // page) * page
        libc.madvise(start, (region + size - start) // page * page, mmap.MADV_HUGEPAGE)
        libc.free(region)


_memory_is_kept = False


def make_mesh(config: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh [data, fsdp, tensor] over `devices` (default: all).

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
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
    # Auto axes: with Explicit ones, the default of jax.make_mesh, embedding look-ups are rejected.
    return Mesh(_arranged(shape, list(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, int, int], devices: list[jax.Device]) -> np.ndarray:
    """The devices in the shape of the mesh, near ones along its last axes."""
    if devices[0].platform != "tpu":
        # By host: jax.make_mesh refuses hosts of GPUs, which it takes for slices of TPUs.
        return np.array(sorted(devices, key=lambda device: (device.process_index, device.id))).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices)
    if shape[0] % slices:
        raise ConfigError(
            f"config.parallel.data: {shape[0]} is not a multiple of the {slices} slices; only data goes over the network between slices"
        )
    return mesh_utils.create_hybrid_device_mesh((shape[0] // slices, *shape[1:]), (slices, 1, 1), devices)


def param_specs(params: Any, rules: tuple[tuple[str, PartitionSpec], ...] = RULES) -> Any:
    """PartitionSpec of each leaf of a parameter tree (arrays or ShapeDtypeStructs).

    Raises:
      ValueError: no rule matches a parameter; the message names it.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        for pattern, found in rules:
            if re.search(pattern, name):
                return found
        raise ValueError(f"no sharding rule matches parameter {name} {leaf.shape}; add one to parallel.RULES")

    return jax.tree_util.tree_map_with_path(spec, params)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """NamedSharding of each leaf of a training state: parameters by rule, their moments alike, counters everywhere.

    A dimension that its mesh axis does not divide stays whole.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        for pattern, spec in RULES:
            if re.search(pattern, name):
                return NamedSharding(mesh, _fitting(mesh, spec, leaf.shape))
        raise ValueError(f"no sharding rule matches {name} {leaf.shape}; add one to parallel.RULES")

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def _fitting(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    axes = [
        axis if axis is None or shape[i] % mesh.shape[axis] == 0 else None
        for i, axis in enumerate(tuple(spec)[: len(shape)])
    ]
    return PartitionSpec(*axes)


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of sharded arrays, or of ShapeDtypeStructs with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of arrays [..., B, ...] whose B axis follows `leading` unsplit axes."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), BATCH))


def check_rows(mesh: Mesh, rows: int) -> None:
    """Raises ConfigError unless data x fsdp divides the rows of a batch, and the processes can share them out."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise ConfigError(
            f"config.data.batch_multiple: {rows} rows do not divide over data x fsdp = {ways} devices; set it to a multiple of {ways}"
        )
    batch_share(mesh)


def batch_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which share of a batch's rows a process reads, and how many shares there are.

    Processes whose devices hold the same rows, since the tensor axis runs through them, read the same share.

    Args:
      mesh: of all processes; process: None: this one.

    Raises:
      ConfigError: devices of two processes hold partly the same rows.
    """
    parts: dict[int, set[int]] = {}
    by_part = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    for part, devices in enumerate(by_part):
        for device in devices:
            parts.setdefault(device.process_index, set()).add(part)
    shares = sorted({tuple(sorted(held)) for held in parts.values()})
    if sum(map(len, shares)) != len(by_part) or len({len(share) for share in shares}) > 1:
        raise ConfigError(
            "config.parallel: on this arrangement of devices two processes share some of a batch's rows and not others; make "
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
    """How many parts the batches of the current mesh (`jax.set_mesh`) come in; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Pins the sharding of an activation whose leading axes are `axes`; does nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
