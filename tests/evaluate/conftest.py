"""What tests of scores share."""

import shutil

import pytest


@pytest.fixture
def captions(monkeypatch):
    """Questions without METEOR, whose Java program takes seconds to start."""
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (requirements-glge.txt)")
    monkeypatch.setattr(shutil, "which", lambda _: None)
