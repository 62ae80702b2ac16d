"""Shared set-up: eight CPU devices in one process, and a compiler that hurries: it is where the tests spend their time."""

import gc
import os
from pathlib import Path

import jax
import pytest

from janus_jax import parallel

# Workers of a parallel run share the cores out: two processes that both use all of them slow each other down tenfold.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
# Where it optimises nothing, the compiler's older code generator is done in a third of the time (with optimisation it takes
# three times as long, and makes slower programs). Processes that tests start inherit it; a compiler without it ignores it.
QUICK = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
if QUICK not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
parallel.start()

MAPS = Path("/proc/self/maps")
MOST_MAPS = 15_000


@pytest.fixture(autouse=True, scope="module")
def _few_compiled_programs():
    """Drops compiled programs when there are many: each holds memory maps, of which Linux allows a process 65,530."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
