"""Shared set-up: eight CPU devices in one process, and a compiler that hurries: it is where the tests spend their time."""

import sys
from pathlib import Path

import jax

from janus_jax import parallel

sys.path.insert(0, str(Path(__file__).resolve().parent))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
parallel.start()
