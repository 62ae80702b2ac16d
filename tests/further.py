"""Cases that CI leaves out: one more size, mesh, mode or model for a property that a cheaper case shows in every run."""

import pytest


def further(*values, **options):
    """`pytest.param` for a case that runs with `-m slow` only."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)
