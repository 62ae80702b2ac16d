"""Helpers of every benchmark: the machine, timing, the rate of a matrix product, memory, the JSON line at the end."""

import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def machine() -> dict[str, Any]:
    """The device and the versions that figures were measured with."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def seconds(run: Callable[[], Any], runs: int) -> list[float]:
    """Wall-clock seconds of each call of `run`, until its result is ready."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def matmul_flops_per_second(dtype: Any = jnp.float32, runs: int = 7) -> float:
    """Operations per second of a large matrix product on this device (median), for comparison."""
    rows, inner, columns = (2048, 1024, 2048) if jax.default_backend() == "cpu" else (8192, 8192, 8192)
    a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    return 2 * rows * inner * columns / statistics.median(seconds(lambda: product(a, b), runs))


def finish(figures: dict[str, Any], as_json: bool) -> None:
    """Prints the figures as one JSON object on the last line if `as_json` is set."""
    if as_json:
        print(json.dumps(figures))


def reset_peak_memory() -> None:
    """Resets `peak_gigabytes`; does nothing where Linux cannot reset it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gigabytes() -> float:
    """Peak memory of this process since `reset_peak_memory` or its start; NaN where Linux does not report it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9
    return float("nan")


def device_peak_gigabytes() -> float | None:
    """Peak memory of the first device in this process, which never falls; None where it is not reported, as by a CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e9 if stats and "peak_bytes_in_use" in stats else None
