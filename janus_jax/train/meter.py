"""How well a run uses its machine: rates, utilisation, memory, waiting, compiling, and the share of time spent in steps.

The metrics describe this process since it started, or since the last record. They differ between machines and between starts of
a run; their names begin with `time/`.
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
    ("v3", 61.5e12),  # of a core: a device of a v3 is a core
    ("v2", 22.5e12),
    ("B200", 2250e12),
    ("GH200", 990e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("V100", 125e12),
    ("T4", 65e12),
)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_MATRIX = 1024  # size of the product that measures an unknown device


def peak_flops(device: jax.Device) -> float:
    """FLOP/s that matrix products reach on a device: from its datasheet, else measured in float32 (0.2 s).

    CPU devices share the cores: each gets an equal part of what was measured.
    """
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
        self._started = time.perf_counter()
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
        """Starts an interval; what was counted since the last record is forgotten."""
        self._start, self._compiled_before = time.perf_counter(), self._compiled
        self._waited = self._tokens = self._flops = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time of the block counts as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def pause(self) -> None:
        """Ends the useful time of the interval: what follows, up to `restart`, doesn't count as steps."""
        taken = time.perf_counter() - self._start
        self._useful += max(0.0, taken - self._waited - (self._compiled - self._compiled_before))

    def count(self, tokens: float, flops: float) -> None:
        """Counts a step: its target tokens and model FLOPs."""
        self._tokens += tokens
        self._flops += flops
        self._steps += 1

    def figures(self) -> dict[str, float]:
        """The metrics, and starts the next interval.

        Of the interval: seconds per step, target tokens/s, share of the time spent waiting for data, model FLOPs / peak FLOPs.
        Of this process: seconds of compiling, goodput (share of its time spent in steps, without waiting and compiling), peak
        memory in GiB.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        self.pause()
        metrics = {
            "time/seconds_per_step": seconds / max(self._steps, 1),
            "time/tokens_per_second": self._tokens / seconds,
            "time/data_wait": self._waited / seconds,
            "time/compile_seconds": self._compiled,
            "time/goodput": self._useful / (time.perf_counter() - self._started),
            "time/memory_gib": memory_gib(),
        }
        if self._peak:
            metrics["time/flops_utilisation"] = self._flops / seconds / self._peak
        self.restart()
        return metrics


def memory_gib() -> float:
    """Peak memory in GiB: of this process's fullest accelerator, or of the process on a CPU."""
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(used):
        return max(used) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


class SpikeDetector:
    """Detects losses far above those before them.

    A loss is compared with the moving mean and standard deviation of the steps before it that had the same loss terms, since
    another set of terms is another loss. Sets may take turns (`objective.ar_every`).

    Args:
      deviations: a loss so many standard deviations above the mean is a spike; 0: no loss is.
    """

    _WINDOW = 100  # steps of the moving mean
    _WARM_UP = 30  # steps before the first check

    def __init__(self, deviations: float):
        self._limit = deviations
        # For each set of terms: the steps so far, the mean of the loss and of its square.
        self._seen: dict[tuple[str, ...], tuple[int, float, float]] = {}

    def check(self, loss: float, terms: tuple[str, ...]) -> float:
        """The standard deviations between the mean and a loss that is a spike; 0 for other losses. A spike doesn't move the mean."""
        count, mean, square = self._seen.get(terms, (0, 0.0, 0.0))
        above = (loss - mean) / max(square - mean**2, 1e-12) ** 0.5
        if self._limit and count >= self._WARM_UP and above > self._limit:
            return above
        rate = 1 / min(count + 1, self._WINDOW)
        self._seen[terms] = (count + 1, mean + rate * (loss - mean), square + rate * (loss**2 - square))
        return 0.0
