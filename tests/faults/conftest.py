"""A small prepared dataset and a run on it, which the fault tests share; tests that damage them take copies."""

import pytest

from janus_jax.data import prepare
from janus_jax.train import train
from tests.train import runs


def small(prepared, **changes):
    """Settings of twelve steps, every third of them saved and kept."""
    settings = {"train__checkpoint_every": 3, "train__keep_last": 4, "train__eval_every": 12, "train__log_every": 1}
    return runs.config(prepared, **{"objective__name": "ar"} | settings | changes)


@pytest.fixture(autouse=True, scope="package")
def _hurry():
    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        yield


@pytest.fixture(scope="package")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("faults") / "demo"
    prepare(runs.config(directory), log=lambda *_: None)
    return directory


@pytest.fixture(scope="package")
def whole(prepared, tmp_path_factory):
    """An uninterrupted run on eight devices that share the rows."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(small(prepared), workdir)
    return workdir
