"""Shared set-up: eight CPU devices in one process, and a compiler that hurries except where parity is measured."""

import sys
from pathlib import Path

import jax
import pytest

from janus_jax import parallel

sys.path.insert(0, str(Path(__file__).resolve().parent))
jax.config.update("jax_num_cpu_devices", 8)
parallel.start()


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request):
    """Compiles with less effort: the tests spend their time in the compiler. Parity tests take the usual way."""
    jax.config.update("jax_disable_most_optimizations", request.module.__name__ != "test_golden")
    yield
    jax.config.update("jax_disable_most_optimizations", False)
