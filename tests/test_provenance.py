"""The git revision is that of the checkout which holds the package, and of no repository around it."""

import shutil
import subprocess

import pytest

from janus_jax import provenance

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


@pytest.fixture
def package(tmp_path):
    """The directory of a package that is in a repository with one commit."""
    package = tmp_path / "checkout/package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package, "init", "--quiet")
    git(package, "add", "__init__.py")
    git(package, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message=Begin")
    return package


def git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_has_a_revision_that_tells_of_changes(package):
    commit = git(package, "rev-parse", "HEAD")
    git(package, "tag", "v1")  # a tag is not the commit
    assert provenance.revision.__wrapped__(package) == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance.revision.__wrapped__(package) == f"{commit}-dirty"


def test_an_installed_package_has_none(package, tmp_path, monkeypatch):
    installed = package.parent / "venv/package"
    shutil.copytree(package, installed, ignore=shutil.ignore_patterns(".git"))
    assert provenance.revision.__wrapped__(installed) is None
    shutil.copytree(installed, tmp_path / "outside")
    assert provenance.revision.__wrapped__(tmp_path / "outside") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.revision.__wrapped__(package) is None
