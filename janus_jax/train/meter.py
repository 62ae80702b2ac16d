"""How well a run uses its machine: rates, utilisation, memory, waiting, compiling, and the share of time that steps got.

Figures are of this process since it started, or since the last record; they differ from machine to machine and from life to life
of a run, and are kept under `time/`.
"""

import contextlib
import functools
import resource
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of a device, by a part of its name (datasheets of Google Cloud TPU and NVIDIA); the first match decides.
PEAKS = (
    ("v6 lite", 918e12),
    ("v6e", 918e12),
    ("v5 lite", 197e12),
    ("v5e", 197e12),
    ("v5p", 459e12),
    ("v5", 459e12),
    ("v4", 275e12),
    ("v3", 61.5e12),  # a core, which is a device there
    ("v2", 22.5e12),
    ("B200", 2250e12),
    ("GH200", 990e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("V100", 125e12),
    ("T4", 65e12),
)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_MATRIX = 1024  # of the product that an unknown device's rate is measured with


def peak_flops(device: jax.Device) -> float:
    """FLOP/s that a device's matrix products can reach: from its datasheet, or measured in float32 (0.2 s), which for the CPU
    counts all its cores and so is shared out among its devices."""
    for name, rate in PEAKS:
        if name.lower() in device.device_kind.lower():
            return rate
    return _measured(device.device_kind) / (jax.local_device_count() if device.platform == "cpu" else 1)


@functools.cache
def _measured(kind: str) -> float:
    device = next(device for device in jax.local_devices() if device.device_kind == kind)
    matrix = jax.device_put(jnp.ones((_MATRIX, _MATRIX), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best, end = float("inf"), time.perf_counter() + 0.2
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _MATRIX**3 / best


class Meter:
    """Counts steps, tokens, FLOPs and waiting between records.

    Args:
      peak: FLOP/s of all devices of the run together; None: no utilisation.
    """

    def __init__(self, peak: float | None = None):
        self._peak = peak
        self._born = time.perf_counter()
        self._useful = self._compiled = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self.restart()

    def _listen(self, event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED:
            self._compiled += seconds

    def close(self) -> None:
        """Stops listening to the compiler."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def restart(self) -> None:
        """Begins an interval; what came since the last record counts for nothing."""
        self._start, self._compiled_before = time.perf_counter(), self._compiled
        self._waited = self._tokens = self._flops = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What runs inside counts as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def pause(self) -> None:
        """The steps since the last record are useful time; what follows, up to `restart`, is not."""
        taken = time.perf_counter() - self._start
        self._useful += max(0.0, taken - self._waited - (self._compiled - self._compiled_before))

    def count(self, tokens: float, flops: float) -> None:
        """A step of so many target tokens and model FLOPs is done."""
        self._tokens += tokens
        self._flops += flops
        self._steps += 1

    def figures(self) -> dict[str, float]:
        """Of the interval: seconds a step, target tokens/s, model FLOPs against the peak, share of the time spent waiting for data.
        Of this process: seconds of compiling, goodput (the share of its life spent in steps, without waiting and compiling), the
        most memory used, GiB. Begins the next interval."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        self.pause()
        found = {
            "time/seconds_per_step": seconds / max(self._steps, 1),
            "time/tokens_per_second": self._tokens / seconds,
            "time/data_wait": self._waited / seconds,
            "time/compile_seconds": self._compiled,
            "time/goodput": self._useful / (time.perf_counter() - self._born),
            "time/memory_gib": memory_gib(),
        }
        if self._peak:
            found["time/flops_utilisation"] = self._flops / seconds / self._peak
        self.restart()
        return found


def memory_gib() -> float:
    """The most memory that was in use at once: of this process's fullest accelerator, or of the process on a CPU; GiB."""
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(used):
        return max(used) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


class Spikes:
    """Finds losses far above those before them.

    Compared is with the mean and standard deviation of the steps before, older ones counting less, of steps with the same terms of the
    loss: another term is another loss.

    Args:
      deviations: how many standard deviations are a spike; 0: none is.
    """

    _MEMORY = 100  # steps
    _SEEN = 30  # before which nothing is judged

    def __init__(self, deviations: float):
        self._limit = deviations
        self._terms: tuple[str, ...] | None = None
        self._begin()

    def _begin(self) -> None:
        self._count, self._mean, self._square = 0, 0.0, 0.0

    def judge(self, loss: float, terms: tuple[str, ...]) -> float:
        """How many standard deviations above the mean the loss is, if that is a spike; else 0. A spike isn't learned from."""
        if terms != self._terms:
            self._terms = terms
            self._begin()
        deviation = max(self._square - self._mean**2, 1e-12) ** 0.5
        above = (loss - self._mean) / deviation
        if self._limit and self._count >= self._SEEN and above > self._limit:
            return above
        self._count += 1
        rate = 1 / min(self._count, self._MEMORY)
        self._mean += rate * (loss - self._mean)
        self._square += rate * (loss**2 - self._square)
        return 0.0
