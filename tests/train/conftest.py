"""Runs of equal settings share their compiled steps."""

import pytest

from tests.train import runs


@pytest.fixture(autouse=True, scope="package")
def _shared_steps():
    with pytest.MonkeyPatch.context() as patch:
        runs.share_compiled_steps(patch)
        yield
