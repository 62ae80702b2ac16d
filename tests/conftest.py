"""Shared set-up: eight CPU devices in one process, a compiler that hurries (tests spend most of their time in it), and
the order in which the workers of a parallel run take the tests."""

import gc
import os
import shutil
from pathlib import Path

import jax
import pytest

from janus_jax import parallel

ROOT = Path(__file__).resolve().parents[1]

# Workers of a parallel run divide the cores among themselves: two processes that both use all cores slow each other
# down tenfold.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
# Without optimisation, the older code generator of the compiler takes a third of the time of the newer one (with
# optimisation it takes three times as long, and makes slower programs), and one piece of a program compiles faster than
# 32 pieces of it. Processes that tests start inherit the flags. A compiler without the older generator ignores the first.
COMPILER_FLAGS = (
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    "--xla_cpu_parallel_codegen_split_count=1",
)
present = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([present, *(flag for flag in COMPILER_FLAGS if flag not in present)]).strip()
# As launch/test.sh does: tests leave no compiled programs in the cache of the user.
os.environ.setdefault("JANUS_JAX_CACHE", str(ROOT / ".cache"))
parallel.start()

# Tracing makes many objects, which live long: with Python's thresholds a tenth of the time goes into looking for cycles.
gc.set_threshold(100_000, 20, 20)

MAPS = Path("/proc/self/maps")
MOST_MAPS = 15_000


@pytest.fixture(autouse=True, scope="module")
def _few_compiled_programs():
    """Drops compiled programs when there are many: each holds memory maps, of which Linux allows a process 65,530."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def chromium_path():
    """The Chromium of the system."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium or Chrome on PATH (Debian: apt install chromium)")
    return found


@pytest.fixture(scope="module")
def chromium(chromium_path):
    """A Chromium that playwright steers."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    with playwright.sync_playwright() as steering:
        browser = steering.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def golden():
    """A function: name -> path of a file of released arrays. One file is committed; a missing other one skips the test."""

    def path_of(name):
        committed, shared = (
            folder / f"{name}.npz" for folder in (ROOT / "tests/golden", ROOT.parent / "shared/golden")
        )
        if not committed.is_file() and not shared.is_file():
            pytest.skip(f"{shared} is missing: these released arrays are not part of the repository")
        return committed if committed.is_file() else shared

    return path_of


# What takes longest, longest first: a worker that begins it last keeps all others waiting. A file runs on one worker,
# since its tests share fixtures; a test that is named here may run apart from its file, and so may each of its cases.
LONGEST_FIRST = (
    "tests/docs/test_training_commands.py",
    "tests/docs/test_pytorch_commands.py",
    "tests/docs/test_pretraining_commands.py",
    "tests/faults/test_processes.py::test_a_lost_process_ends_the_others_a_request_to_one_stops_all_and_other_counts_resume",
    "tests/faults/test_processes.py::test_several_processes_train_and_decode_as_one_does",
    "tests/faults/test_processes.py::test_several_processes_train_as_one_does",
    "tests/train/test_train.py",
    "tests/docs/test_drafts_commands.py",
    "tests/docs/test_experiments_commands.py",
    "tests/objective/test_objective.py",
    "tests/docs/test_decoding_commands.py",
    "tests/train/test_initial.py",
    "tests/model/test_model.py",
    "tests/convert/test_hf_model.py",
    "tests/decode/test_command_line.py",
    "tests/test_configs.py",
    "tests/decode/test_generator.py",
    "tests/decode/test_trained.py",
    "tests/decode/test_speculative.py",
    "tests/convert/test_parallel_rows.py",
    "tests/test_study.py",
    "tests/convert/test_dag_models.py",
    "tests/faults/test_checkpoints.py",
    "tests/faults/test_kill.py",
    "tests/test_parallel.py",
    "tests/play/test_page.py",
    "tests/test_notebook.py::test_bart_to_nar_runs",
    "tests/test_notebook.py",
    "tests/test_golden.py::test_every_array_is_within_its_tolerance",
    "tests/convert/test_export.py",
    "tests/model/test_bart.py",
    "tests/train/test_step.py",
)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # modules and tests stay: no later search for cycles visits them


def _place(nodeid: str) -> int:
    """Index in LONGEST_FIRST of a test (before its file) or of its file; the length of the list if it has neither."""
    for name in (nodeid.split("[")[0], nodeid.split("::")[0]):
        if name in LONGEST_FIRST:
            return LONGEST_FIRST.index(name)
    return len(LONGEST_FIRST)


def pytest_collection_modifyitems(items):
    for name in LONGEST_FIRST:
        file, _, test = name.partition("::")
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")):
            raise pytest.UsageError(f"tests/conftest.py: LONGEST_FIRST names {name}, which does not exist; correct it")
    items.sort(key=lambda item: _place(item.nodeid))  # stable: the tests of a file keep their order


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """File by file, as --dist=loadfile, but for the tests that LONGEST_FIRST names."""
    from xdist.scheduler import LoadFileScheduling

    class FilesAndLongTests(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if nodeid.split("[")[0] in LONGEST_FIRST else super()._split_scope(nodeid)

    return FilesAndLongTests(config, log) if config.getoption("dist") == "loadfile" else None
