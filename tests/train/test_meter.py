"""What a run reports about its machine: rates, utilisation, goodput, spikes, traces."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import ConfigError, resolve
from janus_jax.data import prepare
from janus_jax.train import loop as loop_module
from janus_jax.train import meter as meter_module
from janus_jax.train.loop import train_or_stop
from janus_jax.train.meter import Meter, SpikeDetector, memory_gib, peak_flops
from janus_jax.train.profile import Profiler, profiled_steps
from janus_jax.train.step import compiler_options
from tests.clock import Clock
from tests.train import runs


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


def test_metrics_of_an_interval_and_of_the_process(clock):
    meter = Meter(peak=1000.0)
    clock.now += 10  # starting up
    meter.restart()
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.count(tokens=300, flops=600)
    meter._listen(meter_module._COMPILED, 2.0)
    metrics = meter.figures()
    assert metrics["time/seconds_per_step"] == 2.0
    assert metrics["time/tokens_per_second"] == 150.0
    assert metrics["time/data_wait"] == 0.25
    assert metrics["time/compile_seconds"] == 2.0
    assert metrics["time/flops_utilisation"] == pytest.approx(2400 / 8 / 1000)
    assert metrics["time/goodput"] == pytest.approx((8 - 2 - 2) / 18)  # without waiting and compiling
    clock.now += 3
    meter.pause()
    clock.now += 7  # an evaluation
    meter.restart()
    clock.now += 2
    meter.count(tokens=1, flops=1)
    assert meter.figures()["time/goodput"] == pytest.approx((4 + 3 + 2) / 30)
    meter.close()


def test_compile_time_is_measured_until_closed():
    meter = Meter()
    jax.jit(lambda x: jnp.sin(x) * 3.25 + x**2)(jnp.arange(7.0)).block_until_ready()
    measured = meter.figures()
    assert measured["time/compile_seconds"] > 0
    assert "time/flops_utilisation" not in measured
    meter.close()
    jax.jit(lambda x: jnp.cos(x) * 4.25 + x**2)(jnp.arange(7.0)).block_until_ready()
    assert meter.figures()["time/compile_seconds"] == measured["time/compile_seconds"]


@pytest.mark.parametrize(
    ("kind", "rate"),
    [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("NVIDIA H200", 989e12), ("NVIDIA L40", 181e12), ("NVIDIA L4", 121e12), ("NVIDIA A100-SXM4-80GB", 312e12)],
)  # fmt: skip
def test_rates_of_known_devices(kind, rate):
    class Device:
        device_kind = kind

    assert peak_flops(Device()) == rate


def test_a_cpu_is_measured_and_shared_by_its_devices():
    one, other = (peak_flops(device) for device in jax.devices()[:2])
    assert 1e8 < one < 1e13
    assert one == other
    assert 0.05 < memory_gib() < 1000


def test_spikes():
    spikes, rng = SpikeDetector(8.0), np.random.default_rng(0)
    losses = 5 - np.arange(200) * 0.01 + rng.normal(0, 0.1, 200)
    assert not any(spikes.check(loss, ("ar",)) for loss in losses)
    assert spikes.check(losses[-1] + 20, ("ar",)) > 8
    assert not spikes.check(losses[-1], ("ar",))  # the spike isn't learned from
    assert not spikes.check(losses[-1] + 20, ("ar", "nar"))  # another loss
    in_turns = SpikeDetector(8.0)
    for loss in losses:
        assert not in_turns.check(loss, ("ar",))
        assert not in_turns.check(loss + 20, ("ar", "nar"))
    assert in_turns.check(losses[-1] + 20, ("ar",)) > 8
    assert in_turns.check(losses[-1] + 40, ("ar", "nar")) > 8
    silent = SpikeDetector(0.0)
    assert not any(silent.check(loss, ("ar",)) for loss in [*losses, 1e9])


def test_profiled_steps():
    assert profiled_steps("") is None
    assert profiled_steps("20:25") == (20, 25)
    for wrong in ("20", "a:b", "0:3", "9:8", "3:"):
        with pytest.raises(ConfigError, match=f"--profile={wrong}: give the first and the last step"):
            profiled_steps(wrong)


@pytest.mark.parametrize(
    ("steps", "first", "started", "closed"),
    [(None, 1, [], []), ((3, 5), 1, [3], [5]), ((3, 5), 4, [4], [5]), ((3, 3), 1, [3], [3]), ((3, 5), 6, [], [])],
)
def test_exactly_the_steps_of_the_profile_are_traced(steps, first, started, closed, tmp_path, monkeypatch):
    """Also in a run that resumes, with step `first`, within the interval or after it."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(("start", step)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop", step)))
    profiler = Profiler(tmp_path, steps)
    for step in range(first, 9):
        profiler.before(step)
        if profiler.after(step):
            profiler.close()
    profiler.close()
    assert calls == [
        call for pair in zip(started, closed, strict=True) for call in zip(("start", "stop"), pair, strict=True)
    ]


def test_deterministic_operations_are_asked_for_and_known_to_the_compiler():
    plain, asked = (resolve({"train": {"deterministic": value}}) for value in (False, True))
    assert compiler_options(plain) == {}
    options = compiler_options(asked)
    assert "xla_gpu_deterministic_ops" in options
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=options)  # raises for a name that it doesn't know
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options={"xla_gpu_deterministic_ups": True})


@pytest.mark.slow
def test_a_run_traces_its_steps_and_reports_a_spike_and_its_machine(tmp_path, monkeypatch, capsys):
    original = loop_module.jit_train_step

    def spiking(*args):
        step_fn = original(*args)

        def run(state, batch):
            state, metrics = step_fn(state, batch)
            return state, metrics | {"loss/total": metrics["loss/total"] + 100.0 * (int(state.step) == 35)}

        return run

    monkeypatch.setattr(loop_module, "jit_train_step", spiking)
    config = runs.config(
        tmp_path / "prepared",
        objective__name="ar",
        train__steps=36,
        train__checkpoint_every=36,
        train__eval_every=36,
        train__log_every=6,
    )
    prepare(config, log=lambda _: None)
    _, stopped = train_or_stop(config, tmp_path / "run", profile=(3, 4))
    assert not stopped
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    spikes = [line for line in capsys.readouterr().err.splitlines() if "standard deviations" in line]
    assert len(spikes) == 1
    assert spikes[0].startswith("step 35: loss 1")
    assert "Training examples of the step: " in spikes[0]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    record = next(record for record in records if record["step"] == 30)
    assert 0 < record["time/flops_utilisation"] < 1
    assert 0 < record["time/goodput"] < 1
    assert record["time/memory_gib"] > 0.05
