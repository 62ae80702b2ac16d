"""mkdocs builds a site from the pages without a warning, and the site loads nothing from the network."""

import re
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The directory of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={folder}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_builds_strictly_with_every_page(site):
    for page in PAGES:
        if page != "README.md":
            assert (site / page).with_suffix(".html").is_file(), page


def test_loads_nothing_from_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=[\"']?(?:https?:)?//", text)
        loaded += re.findall(
            r"<link[^>]+rel=[\"']?(?:stylesheet|preload|preconnect)[^>]+href=[\"']?(?:https?:)?//", text
        )
        assert not loaded, page
