"""Files that are written whole, and what is no regular file."""

import os
import subprocess
import sys
import threading

import pytest

from janus_jax import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_regular_file_is_replaced_whole_and_keeps_its_permissions(tmp_path, monkeypatch):
    path = tmp_path / "out"
    files.write_bytes(path, b"one")
    path.chmod(0o640)
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(OSError, match="no room"):
        files.write_bytes(path, b"three")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["out"]


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("file", "absent"):
        link = tmp_path / f"to_{name}"
        link.symlink_to(f"folder/{name}")
    (tmp_path / "folder/file").write_bytes(b"old")
    for name in ("file", "absent"):
        files.write_bytes(tmp_path / f"to_{name}", b"new")
        assert os.readlink(tmp_path / f"to_{name}") == f"folder/{name}"
        assert (tmp_path / "folder" / name).read_bytes() == b"new"
    (tmp_path / "finished").write_bytes(b"newer")
    files.replace(tmp_path / "finished", tmp_path / "to_file")
    assert (tmp_path / "folder/file").read_bytes() == b"newer"
    assert (tmp_path / "to_file").is_symlink()
    assert names(tmp_path / "folder") == ["absent", "file"]


def read_fifo(path):
    """Starts to read a FIFO; the function that is returned waits for its content."""
    content = []
    thread = threading.Thread(target=lambda: content.append(path.read_bytes()), daemon=True)
    thread.start()

    def result():
        thread.join(60)
        return content[0]

    return result


def test_a_fifo_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        files.check_writable(tmp_path / name)
        content = read_fifo(tmp_path / "fifo")
        files.write_bytes(tmp_path / name, b"through")
        assert content() == b"through"
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(OSError, match="not a regular file"):
        files.replace(tmp_path / "fifo", tmp_path / "fifo")


def test_a_descriptor_is_written_through(tmp_path):
    program = "from janus_jax import files; files.write_bytes('/dev/stdout', b'text')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
        assert os.path.samestat(os.fstat(out.fileno()), (tmp_path / "out").stat())
    assert (tmp_path / "out").read_bytes() == b"text"
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert piped.stdout == b"text"


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name in ("", tmp_path, f"{tmp_path}/new/", tmp_path / "no/out", tmp_path / "file/out", tmp_path / "loop"):
        for act in (files.check_writable, lambda path: files.write_bytes(path, b"x")):
            with pytest.raises(OSError, match=r"."):
                act(name)
    files.check_writable(tmp_path / "new")
    for folder in (tmp_path / "file", tmp_path / "file/below", tmp_path / "loop/below"):
        with pytest.raises(OSError, match=r"."):
            files.check_directory(folder)
    files.check_directory(tmp_path / "new/below")
    assert names(tmp_path) == ["file", "loop"]
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_not_replaced(tmp_path):
    (tmp_path / "file").touch(0o444)
    for act in (files.check_writable, lambda path: files.write_bytes(path, b"x")):
        with pytest.raises(PermissionError):
            act(tmp_path / "file")


def test_a_lock_keeps_others_out_until_the_file_is_closed_or_renamed(tmp_path):
    path = tmp_path / "partial"
    with files.locked(path) as file:
        file.write(b"text")
        file.flush()
        with pytest.raises(BlockingIOError), files.locked(path):
            pass
        os.replace(path, tmp_path / "done")
        with files.locked(path) as other:
            assert other.read() == b""
    with files.locked(path):
        pass
    assert (tmp_path / "done").read_bytes() == b"text"


def test_an_error_in_a_locked_block_is_not_swallowed(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), files.locked(tmp_path / "file"):
        raise FileNotFoundError("gone")
