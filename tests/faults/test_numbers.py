"""Steps whose loss or gradient is not finite, and a run that continues after them.

The fault is real: the weight of a term rises for one step beyond the range of float32. (Lasting faults, and the step by
itself, are tested with the training loop.)
"""

import json
import math
import re

import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.train import __main__ as command
from janus_jax.train import train
from tests.faults import killed_runs
from tests.train import runs

# At step 2 only the gradient's norm overflows, at step 5 the loss itself.
SPIKES = {2: 1e25, 5: 3e38}


def spiky(prepared, **changes):
    """A run of seven steps, two of them bad, that saves each."""
    # A step reads the weights of the steps done before it: the first step those of 0.
    schedule = [(step + k - 1, height if k == 0 else 1.0) for step, height in SPIKES.items() for k in (-1, 0, 1)]
    return runs.config(
        prepared, objective__name="ar", objective__weights__ar=tuple(schedule), train__steps=7, train__eval_every=7,
        train__checkpoint_every=1, train__keep_last=20, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tolerated(prepared, tmp_path_factory):
    """A run that tolerates two bad steps."""
    workdir = tmp_path_factory.mktemp("numbers") / "run"
    train(spiky(prepared, train__max_bad_steps=2), workdir)
    return workdir


def test_a_bad_step_changes_nothing_and_the_next_one_learns(tolerated):
    at = {int(path.name): killed_runs.stored(path) for path in checkpoint.step_directories(tolerated)}
    assert sorted(at) == list(range(1, 8))
    learned = [name for name in at[1] if name.startswith(("['params']", "['opt_state']", "['ema']"))]
    assert any(name.startswith("['ema']") for name in learned)
    for step in range(2, 8):
        moved = [name for name in learned if (at[step - 1][name] != at[step][name]).any()]
        assert (len(moved) == 0) if step in SPIKES else (len(moved) > len(learned) // 2), step
    assert all(np.isfinite(at[7][name]).all() for name in learned)


def test_a_bad_step_does_not_enter_the_metrics(tolerated):
    lines = (tolerated / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl")) for line in lines]
    assert [record["step"] for record in metrics] == [2, 4, 6, 7, 7]
    totals = [record["loss/total"] for record in metrics if "loss/total" in record]
    assert len(totals) == 4
    assert all(math.isfinite(total) and total < 10 for total in totals)


def test_the_command_stops_at_one_bad_step_too_many_and_resumes_with_a_higher_limit(
    prepared, tolerated, tmp_path, capsys
):
    file = killed_runs.experiment(spiky(prepared, train__max_bad_steps=1), tmp_path / "run.py")
    arguments = [f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    assert command.main(arguments) == 3
    message = capsys.readouterr().err
    assert re.search(r"step 2: loss \d\S*e\+25, gradient norm inf.*Skipped \(1 of 1 allowed\)", message)
    assert "error: step 5: loss inf" in message
    assert "The newest checkpoint, step 4, is intact" in message
    assert command.main([*arguments, "--config.train.max_bad_steps=2"]) == 0
    ours, theirs = (killed_runs.stored(checkpoint.find(where)) for where in (tmp_path / "run", tolerated))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert killed_runs.records(tmp_path / "run") == killed_runs.records(tolerated)
