"""Processes of one training run: each runs the real command line, and ends by itself or is killed at a chosen moment.

A kill is SIGKILL: the process cannot prepare for it. The files that it leaves show what it was doing.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from janus_jax import checkpoint
from janus_jax.config import Config, to_json
from janus_jax.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
# For the processes that the tests start: a process without torch starts in half the time.
NO_TORCH = Path(__file__).with_name("no_torch")
PYTHON_PATH = f"{NO_TORCH}{os.pathsep}{ROOT}"
MOMENTS = ("start-up", "compile", "steps", "save")
_PATIENCE = 240  # seconds
_EXPERIMENT = """
import json
from pathlib import Path

from janus_jax.config import default_config


def get_config():
    config = default_config()
    config.update(json.loads(Path(__file__).with_suffix(".json").read_text()))
    return config
"""


def experiment(config: Config, path: Path) -> Path:
    """Writes `config` as an experiment file for the command line."""
    path.with_suffix(".json").write_text(to_json(config))
    path.write_text(_EXPERIMENT)
    return path


@dataclasses.dataclass
class KilledRun:
    """A run in one work directory by several processes, one after another.

    Args:
      config: of every process.
      workdir: of the run; the experiment file and the output of the processes lie beside it.
      cache: directory of compiled programs; None: the user's.
      devices: how many CPU devices a process has.
    """

    config: Config
    workdir: Path
    cache: Path | None = None
    devices: int = 1
    kills: list[str] = dataclasses.field(default_factory=list)  # what each killed process was doing

    def __post_init__(self):
        self.file = experiment(self.config, self.workdir.with_suffix(".py"))
        self.log = self.workdir.with_suffix(".log")
        self.checkpoints = self.workdir / "checkpoints"

    @contextlib.contextmanager
    def process(self) -> Iterator[subprocess.Popen]:
        """A process that trains; the end of the block kills it."""
        environment = os.environ | {
            "PYTHONPATH": PYTHON_PATH,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(self.devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the tests' time is the compiler's
        }
        if self.cache:
            environment["JANUS_JAX_CACHE"] = str(self.cache)
        command = [sys.executable, "-m", "janus_jax.train", f"--config={self.file}", f"--workdir={self.workdir}"]
        with self.log.open("w") as log:
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def finish(self) -> None:
        """Trains to the end of the run."""
        with self.process() as process:
            assert process.wait(timeout=_PATIENCE) == 0, self.log.read_text()

    def kill(self, moment: str, rng: random.Random) -> bool:
        """Starts a process and kills it at a random time within a moment: one of MOMENTS, or "any".

        Returns:
          Whether the process was killed; False if the run came to its end before.
        """
        with self.process() as process:
            self._log_before, self._unfinished_before = self._opened_log(), self._unfinished()
            self._wait(process, moment, rng)
            process.kill()
            if process.wait() != -signal.SIGKILL:
                assert process.returncode == 0, self.log.read_text()
                return False
        self.kills.append(self._doing())
        return True

    def _wait(self, process: subprocess.Popen, moment: str, rng: random.Random) -> None:
        if moment == "start-up":
            _sleep(process, rng.uniform(0, 1.0))  # Python and its imports take longer
        elif moment == "any":
            _sleep(process, rng.uniform(0, 8))
        elif moment == "compile":
            self._until(process, lambda: self._opened_log() != self._log_before)
            _sleep(process, rng.uniform(0, 0.8))
        elif moment == "steps":
            self._until(process, self._stepped)
            _sleep(process, rng.uniform(0, 1.5))
        else:
            self._wait_for_save(process, rng)

    def _wait_for_save(self, process: subprocess.Popen, rng: random.Random) -> None:
        """Stops the process (SIGSTOP) while it is saving."""
        while process.poll() is None:
            self._until(process, self._saving)
            _sleep(process, rng.uniform(0, 0.06))
            # A stopped process can't finish the save between this check and the kill.
            process.send_signal(signal.SIGSTOP)
            if process.poll() is not None or self._saving():
                return
            process.send_signal(signal.SIGCONT)

    def _until(self, process: subprocess.Popen, condition) -> None:
        end = time.monotonic() + _PATIENCE
        while process.poll() is None and not condition():
            assert time.monotonic() < end, f"nothing happened: {self.log.read_text()}"
            time.sleep(0.001)

    def _opened_log(self) -> int:
        """Changes when a process opens its log, after it has restored the state."""
        return len(list((self.workdir / "tensorboard").glob("*")))

    def _stepped(self) -> bool:
        return re.search(r"step \d+/", self.log.read_text()) is not None

    def _unfinished(self) -> set[str]:
        """Steps being saved: Orbax's temporary directories."""
        names = os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []
        return {name for name in names if name[0].isdigit() and not name.isdigit()}

    def _saving(self) -> bool:
        return bool(self._unfinished() - self._unfinished_before)

    def _doing(self) -> str:
        """What the killed process was doing."""
        if self._saving():
            return "save"
        if self._stepped():
            return "steps"
        return "compile" if self._opened_log() != self._log_before else "start-up"


def _sleep(process: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def copy_until(step: int, workdir: Path, to: Path) -> None:
    """Copies a run in the state in which it had just saved `step`."""
    shutil.copytree(workdir, to)
    for later in checkpoint.step_directories(to):
        if int(later.name) > step:
            shutil.rmtree(later)
    kept = [record for record in read_metrics(workdir / "metrics.jsonl") if record["step"] <= step]
    (to / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in kept))


def stored(step_directory: Path) -> dict[str, np.ndarray]:
    """Everything in a checkpoint: parameters, optimizer state, average, step, config, tokenizer."""
    items = ocp.load_checkpointables(step_directory)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(items)}


def records(workdir: Path) -> list[dict[str, float]]:
    """The records of metrics.jsonl without the metrics of the machine."""
    return [
        {name: value for name, value in record.items() if not name.startswith("time/")}
        for record in read_metrics(workdir / "metrics.jsonl")
    ]


def assert_same(workdir: Path, whole: Path) -> None:
    """Two runs have the same checkpoints, bitwise, the same metrics, and no unfinished files."""
    ours, theirs = checkpoint.step_directories(workdir), checkpoint.step_directories(whole)
    assert sorted(os.listdir(workdir / "checkpoints")) == sorted(path.name for path in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        actual, expected = stored(mine), stored(other)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, err_msg=f"{mine.name}: {name}")
            assert actual[name].dtype == value.dtype
    assert records(workdir) == records(whole)
    assert not list(workdir.glob("*partial*"))
