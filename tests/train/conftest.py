"""Runs of equal settings share their compiled steps."""

import pytest

from tests.train import runs


@pytest.fixture(autouse=True, scope="package")
def _hurry():
    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        yield
