"""Runs the scripts of launch/ in the checkout, whose environment ./launch/test.sh has made."""

import os
import shutil
import subprocess
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.faults.killed_runs import NO_TORCH

# Variables of processes that tests start: one CPU device, and a compiler that does not optimise.
FAST = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def needs_environment(requirements: str) -> Any:
    """A mark: the test is skipped where a script would first install a file of requirements."""
    made = (ROOT / ".venv" / f"installed-{requirements}").exists() and shutil.which("bash") is not None
    return pytest.mark.skipif(not made, reason="the script would install .venv first; ./launch/test.sh does so")


def launch(script: str, *arguments: Any) -> subprocess.CompletedProcess:
    """Runs a script on one CPU device, and compiles without optimisation."""
    command = ["bash", str(ROOT / "launch" / script), *map(str, arguments)]
    environment = os.environ | FAST | {"PYTHONPATH": str(NO_TORCH)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
