"""Several processes of one run: how they connect, take decisions together and exchange values.

SLURM, Open MPI, Kubernetes, the tools of a TPU slice or a user start them (launch/); JAX's runtime connects them.
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

# Seconds.
HEARTBEAT = 20  # a process that sends no heartbeat for this long counts as lost (JAX's default is 100)
_SHUTDOWN = 20  # a process that ends waits this long for the others to end (JAX's default is 300)
_CONNECT = 300  # a process that starts waits this long for the others to connect


@dataclass(frozen=True)
class Rendezvous:
    """The address at which the processes of a run connect, their number and the index of this one.

    The default value means that these are not known.
    """

    coordinator: str = ""  # HOST:PORT of process 0
    count: int = 0  # processes of the run
    index: int = -1  # of this process, from 0


def connect(rendezvous: Rendezvous | None = None) -> None:
    """Connects this process with the others of its run, if there are others. Safe to call twice.

    The first of these sources that names other processes is used: `rendezvous`; $JAX_COORDINATOR_ADDRESS with
    $JAX_NUM_PROCESSES and $JAX_PROCESS_ID; the launcher (SLURM, Open MPI, a TPU slice of several hosts), which JAX
    detects. With $JANUS_JAX_DISTRIBUTED=1 JAX always tries to detect a launcher. A TPU VM needs this if no environment
    variable names the other hosts: then only its metadata server knows them.

    Args:
      rendezvous: None or `Rendezvous()` if it is not known.

    Raises:
      ConfigError: `rendezvous` or the three variables are incomplete, or the processes did not connect.
    """
    if jax.distributed.is_initialized():
        return
    rendezvous = _checked(rendezvous or Rendezvous()) or _from_environment(os.environ)
    if rendezvous is None and not _has_launcher(os.environ):
        return
    # The training loop handles SIGTERM (see `any_process`). JAX's preemption service would handle it instead.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {}
    if rendezvous:
        arguments = {
            "coordinator_address": rendezvous.coordinator,
            "num_processes": rendezvous.count,
            "process_id": rendezvous.index,
            "cluster_detection_method": "deactivate",
        }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of each launcher that it does not detect
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=_SHUTDOWN,
                initialization_timeout=_CONNECT,
            )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of this run did not connect ({error}); give --coordinator=HOST:PORT, --processes=N and "
            "--process=I (0 to N - 1) to each; HOST is the host of process 0"
        ) from error


def _checked(rendezvous: Rendezvous) -> Rendezvous | None:
    """The rendezvous if it is complete, None if it is the default; ConfigError if it is incomplete."""
    if rendezvous == Rendezvous():
        return None
    host, _, port = rendezvous.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 <= rendezvous.index < rendezvous.count:
        raise ConfigError(
            f"--coordinator={rendezvous.coordinator} --processes={rendezvous.count} --process={rendezvous.index}: give all three: "
            "HOST:PORT of process 0, the number of processes, and the index of this process, from 0"
        )
    return rendezvous


def _from_environment(environment: Any) -> Rendezvous | None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    # The address alone is an input of JAX's detection, which takes the rest from the launcher.
    if not all(environment.get(name) for name in names):
        return None
    address, *numbers = (environment[name] for name in names)
    if not all(number.isdigit() for number in numbers):
        raise ConfigError(f"$JAX_NUM_PROCESSES={numbers[0]} and $JAX_PROCESS_ID={numbers[1]} must be numbers")
    return _checked(Rendezvous(address, *map(int, numbers)))


def _has_launcher(environment: Any) -> bool:
    """Whether a launcher started several processes. A single process must not open a port: another run may need it."""
    tasks = max(int(environment.get(name) or 0) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = [environment.get(name, "").count(",") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")]
    requested = any(
        environment.get(name, "") not in ("", "0")
        for name in ("JANUS_JAX_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
    )
    return tasks > 1 or any(hosts) or requested


class StopRequest:
    """Whether this process was asked to save and stop."""

    received = False


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Inside the block, SIGTERM and SIGHUP (its terminal was closed) set `received` and don't end the process.

    A SIGHUP that is ignored stays so: `nohup` wants the run to go on. Only the main thread can install a signal handler: in
    any other thread the request is never set.
    """
    request = StopRequest()

    def handle(*_: Any) -> None:
        request.received = True

    wanted = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    try:
        before = [(number, signal.signal(number, handle)) for number in wanted]
    except ValueError:
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before:
            # Python cannot put back one that it did not install.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host or a device has too little memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def any_process(mesh: Mesh) -> Callable[[bool], jax.Array | bool]:
    """Returns `ask(flag)`: whether the flag is set on any process; all processes get the same answer.

    The answer is an array [], and `ask` does not wait for its value. All processes must call `ask` equally often. In a
    run of one process the answer is the flag.
    """
    if jax.process_count() == 1:
        return lambda flag: flag
    split, replicated = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    highest = jax.jit(jnp.max, out_shardings=replicated)
    local = len(mesh.local_devices)

    def ask(flag: bool) -> jax.Array:
        flags = np.full(local, flag, np.int32)
        return highest(jax.make_array_from_process_local_data(split, flags))

    return ask


def all_processes(ok: bool) -> bool:
    """Whether `ok` is true on all processes; a barrier."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.int32(ok))))


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """If the block fails on one process, it raises on all, so that none waits for one that failed. Ends with a barrier.

    Raises:
      ConfigError: the block failed on another process.
    """
    try:
        yield
    except Exception:
        all_processes(False)
        raise
    if not all_processes(True):
        raise ConfigError("another process of this run failed; its message says why")


def all_gather(values: Sequence[Any]) -> list[list[Any]]:
    """The values of every process, in the order of the processes; a barrier.

    Args:
      values: JSON values of this process.
    """
    if jax.process_count() == 1:
        return [list(values)]
    data = np.frombuffer(json.dumps(list(values)).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """Gathers arrays that are split over the devices of `mesh`: each process gets whole arrays on its first device."""
    return jax.tree.map(lambda x: x.addressable_data(0), _replicate(mesh)(tree))


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
