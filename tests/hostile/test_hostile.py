"""No bad input ends in a traceback, in success without output, or in a changed bystander; each error names the place and is one line.

Commands run in this process. Where a case gets past all checks, training stops before its first step, and decoding gives back the source:
what a model computes is not the question here.
"""

import contextlib
import importlib
import io
import random
import traceback
import types
from pathlib import Path

import pytest

from janus_jax.decode import Generator
from janus_jax.decode.types import SentenceResult
from janus_jax.train import loop
from tests.hostile import desk
from tests.hostile.cases import Case, Maker

STATUSES = (0, 2, 3)
LEFT = (".partial", ".state.json", ".lock")  # what a failed command may leave, from which it resumes


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """The desk as the current directory, with models that do not compute."""
    pytest.importorskip("safetensors")
    pytest.importorskip("huggingface_hub")
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JANUS_JAX_CACHE", "")
        desk.build(folder)
        patch.setattr(Generator, "_results", _copied)
        patch.setattr(loop._TrainingRun, "_first_state", lambda *_: (types.SimpleNamespace(step=0), {}))
        patch.setattr(loop._TrainingRun, "run", _not_run)
        yield folder / "fixed"


def _copied(_, sentences, indices, decode, trace):
    sources = [sentences.sources[i] for i in indices]
    yield indices, [SentenceResult([(source, 0.0, [])] * decode.nbest, {}, []) for source in sources]


def _not_run(run):
    run.checkpoints.close()
    run.profiler.close()
    run.meter.close()
    run.log.close()
    return {}, False


def run(command: str, argv: list[str]) -> tuple[int | str, str, str]:
    """Exit status (or the error that was not caught), standard output, standard error."""
    main = importlib.import_module(f"janus_jax.{command}.__main__").main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as error:
            status = error.code or 0
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            status = f"{type(error).__name__}: {str(error)[:200]!r} in {frame.filename}, line {frame.lineno}"
    return status, out.getvalue(), err.getvalue()


def faults(case: Case, before: dict[str, str], fixed: Path) -> list[str]:
    """What is wrong with the way in which a command takes a case."""
    given = desk.fingerprint(Path(case.work))
    status, _, err = run(case.command, case.argv)
    if status not in STATUSES:
        return [f"status {status}"]
    found = []
    if "Traceback" in err:
        found.append("a traceback")
    if desk.fingerprint(fixed) != before:
        found.append("a bystander changed")
    after = desk.fingerprint(Path(case.work))
    if any(after.get(name) != mark for name, mark in given.items() if name != Path(case.output).name):
        found.append("an input changed")
    if status:
        lines = [line for line in err.splitlines() if line.strip()]
        errors = [line for line in lines if "error: " in line]
        if len(errors) != 1 or lines[-1] != errors[0]:
            found.append(f"not one line of error: {err[-500:]!r}")
        elif not any(place in errors[0] for place in case.places):
            found.append(f"names none of {case.places}: {errors[0][:300]}")
        output = Path(case.output)
        if case.output and output.name in after and output.name not in given and not output.name.endswith(LEFT):
            found.append("it failed and left an output")
    elif case.output:
        output = Path(case.output)
        if not output.exists():
            found.append("success without output")
        elif case.lines is not None and output.read_bytes().count(b"\n") != case.lines:
            found.append(f"{output.read_bytes().count(bytes([10]))} lines of output, not {case.lines}")
    return found


def check(seed: int, count: int, fixed: Path) -> None:
    before = desk.fingerprint(fixed)
    reports = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        work = Path(f"case_{seed}_{number}")
        work.mkdir()
        case = Maker(rng, work).case()
        if found := faults(case, before, fixed):
            command = " ".join([case.command, *(arg if len(arg) < 200 else f"{arg[:200]}..." for arg in case.argv)])
            reports.append(f"seed {seed}, case {number}: {command}\n    " + "\n    ".join(found))
    assert not reports, f"{len(reports)} of {count} cases\n" + "\n".join(reports)


@pytest.mark.parametrize("seed", range(4))
def test_bad_input_gets_one_clear_error(fixed, seed):
    check(seed, 50, fixed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_thousands_of_bad_inputs_get_one_clear_error(fixed, seed):
    check(seed, 100, fixed)


def test_good_input_is_accepted(fixed):
    for command, argv in (
        ("decode", ["--checkpoint=fixed/run", "--mode=ar", "--input=fixed/in.txt", "--output=good.txt"]),
        ("evaluate", ["--hypotheses=fixed/in.txt", "--references=fixed/in.txt"]),
        ("data", ["--config=fixed/mine.py", "--config.data.prepared=good_prepared"]),
        ("train", ["--config=fixed/mine.py", "--workdir=good_run"]),
        ("convert", ["import", "--from=hf", "--model=fixed/export", "--output=good_import"]),
    ):
        status, _, err = run(command, argv)
        assert status == 0, (command, status, err)
