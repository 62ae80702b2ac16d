"""Runs of several processes on this machine, by launch/local_processes.sh: they equal a run of one process, and one process is asked
to stop, is lost, or fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.command_line import load_config
from janus_jax.config import ConfigError, ParallelConfig, leaves
from janus_jax.train import train
from janus_jax.train.__main__ import main
from janus_jax.train.workdir import check_workdir_is_shared, workdir_lock
from tests.faults.killed_runs import PYTHON_PATH, ROOT
from tests.train import runs

SCRIPT = ROOT / "launch/local_processes.sh"
SETTINGS = {
    "data__batch_multiple": 8, "train__steps": 24, "train__eval_every": 24, "train__checkpoint_every": 8,
    "train__eval_sentences": 8, "train__log_every": 4,
}  # fmt: skip
LONG = SETTINGS | {
    "objective__name": "ar", "train__steps": 20_000, "train__eval_every": 20_000, "train__checkpoint_every": 20,
    "train__eval_sentences": 0,
}  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the launcher is a bash script")


@pytest.fixture(scope="module")
def single(prepared, tmp_path_factory):
    """The records of the run of one process, with eight devices."""
    workdir = tmp_path_factory.mktemp("single")
    train(runs.config(prepared, **SETTINGS), workdir)
    return records(workdir)


def records(workdir):
    """The records of a run without the metrics of the machine."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def assert_same(actual, expected):
    assert [record["step"] for record in actual] == [record["step"] for record in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            # Divergences are differences of nearly equal numbers here.
            np.testing.assert_allclose(one[name], value, rtol=2e-5, atol=1e-6, err_msg=f"step {other['step']} {name}")


class ProcessesRun:
    """A run of several processes, which starts with this object."""

    def __init__(self, count, config, workdir, folder, devices=1, init_from=""):
        """`init_from` is an expression of the experiment file, which each process runs for itself."""
        settings = {name: value for name, value in leaves(config) if not name.startswith("parallel.")}
        settings |= {f"parallel.{name}": getattr(config.parallel, name) for name in ("data", "fsdp", "tensor")}
        file = folder / "experiment.py"
        file.write_text(
            "import os\n\nfrom janus_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
            f"    config.update_from_flattened_dict({settings!r})\n"
            + (f"    config.init_from = {init_from}\n" if init_from else "")
            + "    return config\n"
        )
        self.count, self.workdir, self.output = count, workdir, folder / "output.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    SCRIPT,
                    str(count),
                    sys.executable,
                    "-m",
                    "janus_jax.train",
                    f"--config={file}",
                    f"--workdir={workdir}",
                ],
                cwd=ROOT,
                env=os.environ
                | {
                    "JAX_NUM_CPU_DEVICES": str(devices),
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                    "PYTHONPATH": PYTHON_PATH,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                # A worker of a parallel test run has one core, which is too little for several processes.
                preexec_fn=lambda: os.sched_setaffinity(0, range(os.cpu_count())),
            )

    def text(self):
        return self.output.read_text()

    def pid(self, index):
        """The id of the process with this index."""
        for entry in Path("/proc").iterdir():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if (
                    f"JAX_PROCESS_ID={index}".encode() in environment
                    and b"janus_jax.train" in (entry / "cmdline").read_bytes()
                    and f"PPid:\t{self.process.pid}\n" in (entry / "status").read_text()
                ):
                    return int(entry.name)
            except OSError:  # it has ended
                continue
        raise AssertionError(f"no process {index}\n{self.text()}")

    def wait_for(self, text, seconds=200):
        end = time.monotonic() + seconds
        while text not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)

    def status(self, seconds=200):
        try:
            return self.process.wait(timeout=seconds)
        finally:
            if self.process.poll() is None:
                os.kill(self.process.pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "sizes"),
    [(2, 1, (1, 2, 1)), (4, 1, (2, 2, 1)), (2, 2, (2, 1, 2))],
    ids=["two-fsdp", "four", "two-tensor"],
)
def test_several_processes_train_and_decode_as_one_does(prepared, single, tmp_path, count, devices, sizes):
    config = runs.config(prepared, **SETTINGS, parallel=ParallelConfig(*sizes).__dict__)
    assert_trains_alike(ProcessesRun(count, config, tmp_path / "run", tmp_path, devices), sizes, single)


def test_several_processes_train_as_one_does(prepared, tmp_path):
    settings, sizes = SETTINGS | {"objective__name": "ar", "train__eval_sentences": 0}, (1, 2, 1)
    run = ProcessesRun(
        2, runs.config(prepared, **settings, parallel=ParallelConfig(*sizes).__dict__), tmp_path / "run", tmp_path
    )
    train(runs.config(prepared, **settings), tmp_path / "single")
    assert_trains_alike(run, sizes, records(tmp_path / "single"))


def assert_trains_alike(run, sizes, single):
    """A run of several processes ends with the records and checkpoints of one with the records `single`."""
    workdir, count = run.workdir, run.count
    assert run.status() == 0, run.text()
    assert_same(records(workdir), single)
    assert [path.name for path in checkpoint.step_directories(workdir)] == ["8", "16", "24"]
    # All processes have written: Orbax keeps their files apart.
    written = {path.name for path in (workdir / "checkpoints/24/params").glob("ocdbt.process_*")}
    assert len(written) == (count if sizes[1] > 1 or sizes[2] > 1 else 1), written


def assert_equals_uninterrupted(workdir, config, whole):
    """A run that was interrupted has the records and the last step of one that this process trains in `whole`."""
    train(config, whole)
    assert_same(records(workdir), records(whole))
    assert checkpoint.find(workdir).name == checkpoint.find(whole).name


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["coordinator", "other"])
def test_a_lost_process_ends_the_others_a_request_to_one_stops_all_and_other_counts_resume(prepared, tmp_path, lost):
    config, workdir = runs.config(prepared, **LONG), tmp_path / "run"
    run = ProcessesRun(2, config, workdir, tmp_path)
    run.wait_for("step 24/")
    pid = run.pid(1 - lost)
    os.kill(run.pid(lost), signal.SIGKILL)
    start = time.monotonic()
    assert run.status(seconds=60) != 0
    assert time.monotonic() - start < 60
    assert not Path(f"/proc/{pid}").exists()
    assert f"[{1 - lost}] error: another process of this run is lost" in run.text(), run.text()
    saved = int(checkpoint.step_directories(workdir)[-1].name)
    assert saved >= 20
    # Four processes resume the run of two.
    run = ProcessesRun(4, config, workdir, tmp_path)
    run.wait_for(f"step {saved + 4}/")
    os.kill(run.pid(1), signal.SIGTERM)
    assert run.status(seconds=60) == 0, run.text()
    stopped = int(re.search(r"stopped on request after step (\d+)", run.text())[1])
    assert [path.name for path in checkpoint.step_directories(workdir)][-1] == str(stopped)
    # This process, with eight devices, resumes the run of four.
    more = runs.config(prepared, **(LONG | {"train__steps": stopped + 4}))
    train(more, workdir)
    assert_equals_uninterrupted(workdir, more, tmp_path / "whole")


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_for_one_process_is_set_aside_by_all(prepared, tmp_path):
    settings = SETTINGS | {"objective__name": "ar", "train__eval_sentences": 0}
    two = {"parallel": ParallelConfig(1, 2, 1).__dict__}
    run = ProcessesRun(2, runs.config(prepared, **settings, **two), tmp_path / "run", tmp_path)
    assert run.status() == 0, run.text()
    parts = (run.workdir / "checkpoints/24/params/ocdbt.process_1/d").iterdir()  # what the first process does not read
    for part in parts:
        os.truncate(part, part.stat().st_size // 2)
    more = runs.config(prepared, **settings | {"train__steps": 32}, **two)
    again = ProcessesRun(2, more, tmp_path / "run", tmp_path)
    assert again.status(seconds=100) == 0, again.text()
    assert "is damaged and kept as damaged-STEP; resumes from step 16" in again.text()
    names = {path.name for path in (run.workdir / "checkpoints").iterdir()}
    assert {"damaged-24", "24", "32"} <= names


@pytest.mark.slow
def test_a_start_that_is_damaged_for_one_process_is_named_by_it_and_ends_all(prepared, tmp_path):
    settings = SETTINGS | {"objective__name": "ar", "train__eval_sentences": 0}
    train(runs.config(prepared, **settings | {"train__steps": 8}), tmp_path / "start0")
    shutil.copytree(tmp_path / "start0", tmp_path / "start1")
    copies = f"{str(tmp_path / 'start')!r} + os.environ['JAX_PROCESS_ID']"
    config = runs.config(prepared, **settings)
    run = ProcessesRun(2, config, tmp_path / "run", tmp_path, init_from=copies)
    assert run.status() == 0, run.text()
    for part in (tmp_path / "start1/checkpoints/8/ema").rglob("d/*"):
        os.truncate(part, part.stat().st_size // 2)
    run = ProcessesRun(2, config, tmp_path / "again", tmp_path, init_from=copies)
    assert run.status(seconds=100) == 2, run.text()
    assert re.search(r"\[1\] error: .*start1/checkpoints/8: damaged", run.text()), run.text()
    assert "[0] error: another process of this run failed; its message says why" in run.text()
    shutil.rmtree(tmp_path / "start1")
    run = ProcessesRun(2, config, tmp_path / "again", tmp_path, init_from=copies)
    assert run.status(seconds=100) == 2, run.text()
    assert re.search(r"\[1\] error: .*start1: no such directory", run.text()), run.text()
    assert "[0] error: another process of this run failed; its message says why" in run.text()


def test_when_one_process_fails_no_other_waits_for_it(prepared, tmp_path):
    with workdir_lock(tmp_path / "run"):  # an error of the first process alone
        run = ProcessesRun(2, runs.config(prepared, **SETTINGS), tmp_path / "run", tmp_path)
        assert run.status(seconds=60) == 2
    assert re.search(r"\[0\] error: .* is in use by another run \(.*\"process\": \d+", run.text())
    assert "[1] error: another process of this run failed; its message says why" in run.text()


def test_a_directory_that_only_the_first_process_sees_is_refused(tmp_path):
    with workdir_lock(tmp_path / "run"):
        check_workdir_is_shared(tmp_path / "run")
    with pytest.raises(
        ConfigError, match="it isn't the directory of the first process; name a directory that all hosts share"
    ):
        check_workdir_is_shared(tmp_path / "other", seconds=0)


def test_an_incomplete_rendezvous_is_refused(tmp_path, capsys):
    assert main([f"--config={ROOT / 'configs/demo_deen.py'}", f"--workdir={tmp_path}", "--processes=2"]) == 2
    assert "give all three" in capsys.readouterr().err


def test_the_scripts_of_launchers_are_valid(capsys):
    yaml = pytest.importorskip("yaml")
    for name in ("local_processes.sh", "tpu_pod.sh", "slurm.sbatch"):
        assert subprocess.run(["bash", "-n", ROOT / "launch" / name], check=False).returncode == 0, name
        assert os.access(ROOT / "launch" / name, os.X_OK) == name.endswith(".sh")
    jobset = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert job["parallelism"] == job["completions"] == int(environment["JAX_NUM_PROCESSES"])
    host, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
    assert (
        host
        == f"{jobset['metadata']['name']}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0.{jobset['metadata']['name']}"
    )
    assert int(port) == container["ports"][0]["containerPort"]
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    # Its arguments are flags of the command.
    assert container["command"] == ["python", "-m", "janus_jax.train"]
    assert main(["--help"]) == 0
    known = capsys.readouterr().out
    arguments = dict(arg.split("=", 1) for arg in container["args"])
    batches = {f"--config.{name}" for name in ("data.batch_multiple", "data.tokens_per_batch", "train.accumulation")}
    assert arguments.keys() == {"--config", "--config.data.prepared", "--workdir", "--status_when_stopped"} | batches
    # A batch has rows for all devices, and a step as many rows as the config has on eight of them.
    config = load_config(f"{ROOT}/{arguments['--config']}")
    multiple, tokens, steps = (int(arguments[name]) for name in sorted(batches))
    devices = job["parallelism"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert multiple % devices == 0
    longest = config.data.max_target_length
    rows = config.data.tokens_per_batch // longest // config.data.batch_multiple * config.data.batch_multiple
    assert tokens // longest // multiple * multiple * steps == rows * config.train.accumulation > 0
    slurm = (ROOT / "launch/slurm.sbatch").read_text()
    assert "${JANUS_JAX_CACHE-" in slurm  # an empty value keeps nothing
    assert all(f"{name}={arguments[name]}" in slurm for name in batches)
    for name in ("--config.data.prepared", "--workdir"):  # all pods see them
        assert arguments[name].startswith(f"{container['volumeMounts'][0]['mountPath']}/"), name
    assert all(f"--{flag}" in known for flag in ("config", "workdir", "status_when_stopped"))


def test_a_tpu_worker_starts_once_and_shows_its_log_again(tmp_path):
    script, arguments = ROOT / "launch/tpu_pod.sh", ["--dry_run", "name", "zone", "--config=a b"]
    command = subprocess.run([script, *arguments], capture_output=True, text=True, check=True).stdout
    python = tmp_path / "janus_jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "started $JANUS_JAX_DISTRIBUTED $*"\nsleep 3\necho ended\n')
    python.chmod(0o755)
    workers = []
    for _ in range(2):
        environment = os.environ | {"HOME": str(tmp_path)}
        workers.append(subprocess.Popen(["bash", "-c", command], env=environment, stdout=subprocess.PIPE, text=True))
        time.sleep(1)
    shown = [process.communicate(timeout=30)[0] for process in workers]
    assert shown == ["started 1 -m janus_jax.train --config=a b\nended\n"] * 2


def test_the_first_failure_is_the_status_of_all_and_a_signal_reaches_all():
    fails = [SCRIPT, "3", "bash", "-c", "exit $((JAX_PROCESS_ID * 7))"]
    assert subprocess.run(fails, check=False).returncode == 7
    waits = [SCRIPT, "2", "bash", "-c", "trap 'echo stopping; exit 0' TERM; echo ready; while :; do sleep 0.1; done"]
    process = subprocess.Popen(waits, stdout=subprocess.PIPE, text=True)
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert sorted(output.split("\n")) == ["", "[0] stopping", "[1] stopping"]


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others(prepared, tmp_path):
    config = runs.config(prepared, **LONG)
    run = ProcessesRun(2, config, tmp_path / "run", tmp_path)
    run.wait_for("step 24/")
    hanging, other = run.pid(1), run.pid(0)
    os.kill(hanging, signal.SIGSTOP)
    try:
        start = time.monotonic()
        while Path(f"/proc/{other}").exists():
            assert time.monotonic() - start < 60, run.text()
            time.sleep(0.2)
    finally:
        os.kill(hanging, signal.SIGKILL)
    assert run.status() != 0
    assert re.search(r"\[0\] .*(is lost|heartbeat|distributed service detected fatal errors)", run.text()), run.text()


def test_launchers_are_detected():
    from janus_jax import processes

    three = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert processes._from_environment(three) == processes.Rendezvous("10.0.0.1:1234", 4, 3)
    assert processes._from_environment({}) is None
    for alone in (
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JANUS_JAX_DISTRIBUTED": "0"},
    ):
        assert not processes._has_launcher(alone)
    for several in (
        {"SLURM_STEP_NUM_TASKS": "8"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, {"JANUS_JAX_DISTRIBUTED": "1"},
    ):  # fmt: skip
        assert processes._has_launcher(several)
    assert jax.process_count() == 1
