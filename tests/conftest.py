"""Shared set-up: eight CPU devices in one process; compiled programs are kept between runs of the tests."""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent))
jax.config.update("jax_num_cpu_devices", 8)
