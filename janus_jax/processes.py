"""Several processes of one run: how they find each other, agree and exchange text.

They are started by SLURM, Open MPI, Kubernetes, a TPU slice's own tools or by hand (launch/); JAX's runtime connects them.
"""

import contextlib
import functools
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.config import ConfigError

# Seconds without a sign of life after which a process counts as lost (JAX's default is 100); a process that ends waits so long
# for the others to end too (default 300).
HEARTBEAT = 20
_SHUTDOWN = 20
_CONNECT = 300


@dataclass(frozen=True)
class Processes:
    """Where the processes of a run meet, and which of them this one is; an empty coordinator: to be found out."""

    coordinator: str = ""  # HOST:PORT of process 0
    count: int = 0
    index: int = -1


def connect(given: Processes | None = None) -> None:
    """Connects this process with the others of its run, if there are others. Safe to call twice.

    They are looked for in this order: `given`; $JAX_COORDINATOR_ADDRESS with $JAX_NUM_PROCESSES and $JAX_PROCESS_ID; the launcher
    (SLURM, Open MPI, a TPU slice of several hosts), by JAX's own detection. $JANUS_JAX_DISTRIBUTED=1 has JAX look although
    nothing in the environment speaks of others: on TPU VMs only the metadata server does.

    Raises:
      ConfigError: only a part of the three is given, or the processes did not find each other.
    """
    if jax.distributed.is_initialized():
        return
    found = _given(given or Processes()) or _from_environment(os.environ)
    if found is None and not _launched(os.environ):
        return
    # One mechanism for requests to stop: the loop's own (see `anyone`). JAX's would take SIGTERM from it.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {}
    if found:
        arguments = {
            "coordinator_address": found.coordinator,
            "num_processes": found.count,
            "process_id": found.index,
            "cluster_detection_method": "deactivate",
        }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of launchers that are not this one
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=_SHUTDOWN,
                initialization_timeout=_CONNECT,
            )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of this run did not find each other ({error}); give --coordinator=HOST:PORT, --processes=N and "
            "--process=I (0 to N - 1) to each, HOST being that of process 0"
        ) from error


def _given(processes: Processes) -> Processes | None:
    if processes == Processes():
        return None
    host, _, port = processes.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 <= processes.index < processes.count:
        raise ConfigError(
            f"--coordinator={processes.coordinator} --processes={processes.count} --process={processes.index}: give all three: "
            "HOST:PORT of process 0, the number of processes, and the number of this one, from 0"
        )
    return processes


def _from_environment(environment: Any) -> Processes | None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    # The address alone is for JAX's detection, which takes it from there and the rest from the launcher.
    if not all(environment.get(name) for name in names):
        return None
    address, *numbers = (environment[name] for name in names)
    if not all(number.isdigit() for number in numbers):
        raise ConfigError(f"$JAX_NUM_PROCESSES={numbers[0]} and $JAX_PROCESS_ID={numbers[1]} must be numbers")
    return _given(Processes(address, *map(int, numbers)))


def _launched(environment: Any) -> bool:
    """Whether a launcher started several processes. (A single one must not open a port that its neighbour wants too.)"""
    tasks = max(int(environment.get(name) or 0) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = [environment.get(name, "").count(",") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")]
    told = any(
        environment.get(name)
        for name in ("JANUS_JAX_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
    )
    return tasks > 1 or any(hosts) or told


class Request:
    """To save and stop."""

    made = False


@contextlib.contextmanager
def stop_request() -> Iterator[Request]:
    """A request that SIGTERM makes as long as this lasts; outside the main thread, where nothing is installed, nobody makes it."""
    request = Request()

    def make(*_: Any) -> None:
        request.made = True

    try:
        before = signal.signal(signal.SIGTERM, make)
    except ValueError:
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def anyone(mesh: Mesh) -> Callable[[bool], jax.Array | bool]:
    """`ask(flag)`: whether the flag is set on any process, the same answer on all of them.

    The answer is an array that is not waited for; every process must ask equally often. Nothing is exchanged in a run of one
    process, whose answer is its own flag.
    """
    if jax.process_count() == 1:
        return lambda flag: flag
    split, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    highest = jax.jit(jnp.max, out_shardings=whole)
    local = len(mesh.local_devices)

    def ask(flag: bool) -> jax.Array:
        own = np.full(local, flag, np.int32)
        return highest(jax.make_array_from_process_local_data(split, own))

    return ask


def agree(ok: bool) -> bool:
    """Whether all processes say yes. Waits for them."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.int32(ok))))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What runs inside succeeds on all processes, or ends on all: nobody waits for one that has given up.

    Raises:
      ConfigError: it failed on another process.
    """
    try:
        yield
    except Exception:
        agree(False)
        raise
    if not agree(True):
        raise ConfigError("another process of this run gave up; its own message says why")


def gathered(own: Sequence[Any]) -> list[list[Any]]:
    """What each process gives, a list of JSON values, by process; the same on all of them. Waits for them."""
    if jax.process_count() == 1:
        return [list(own)]
    data = np.frombuffer(json.dumps(list(own)).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """Arrays that are split over the processes of `mesh`, whole on the first device of each process."""
    return jax.tree.map(lambda x: x.addressable_data(0), _whole(mesh)(tree))


@functools.cache
def _whole(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
