"""Settings of the decoding tests."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request):
    """Compiles with less effort: these tests spend their time in the compiler. The parity tests take the usual way."""
    quick = not request.module.__name__.endswith("test_golden_decode")
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
