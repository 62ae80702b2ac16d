"""Formats, and the chunked writing that survives a kill."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from janus_jax.decode import Output, io
from janus_jax.decode.io import Item, LinesError

ITEMS = [Item(f"line {i}") for i in range(10)]


def shout(start, part):
    return [f"{start + i} {item.source.upper()}" for i, item in enumerate(part)]


def expected(count=10):
    return "".join(f"{i} LINE {i}\n" for i in range(count))


def test_a_run_writes_one_record_an_item_and_leaves_nothing_else(tmp_path):
    io.write_resumable(ITEMS, tmp_path / "out", shout, signature=1, chunk=3)
    assert (tmp_path / "out").read_text() == expected()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_run_resumes_after_its_last_whole_chunk(tmp_path, caplog):
    """kill -9 in the third chunk, half of which is on the disk already."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from janus_jax.decode import io
from tests.decode.test_resumable import ITEMS, shout

def decode(start, part):
    if start == 6:
        with open({str(tmp_path / "out.partial")!r}, "ab") as file:
            file.write(b"half a rec")
        os.kill(os.getpid(), signal.SIGKILL)
    return shout(start, part)

io.write_resumable(ITEMS, {str(tmp_path / "out")!r}, decode, signature=1, chunk=3)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    starts = []
    io.write_resumable(
        ITEMS,
        tmp_path / "out",
        lambda s, p: starts.append(s) or shout(s, p),
        signature=1,
        chunk=3,
        skipped=starts.append,
    )
    assert starts == [6, 6, 9]
    assert "resumes after 6 of 10" in caplog.text
    assert (tmp_path / "out").read_text() == expected()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["signature", "input", "extra"])
def test_a_run_with_other_input_or_settings_starts_from_the_first_item(tmp_path, change):
    def fail(start, part):
        if start:
            raise LinesError("stop")
        return shout(start, part)

    with pytest.raises(LinesError):
        io.write_resumable(ITEMS, tmp_path / "out", fail, signature=1, chunk=4)
    items = [Item("other"), *ITEMS[1:]] if change == "input" else ITEMS
    if change == "extra":
        items = [Item("line 0", extra={"id": 1}), *ITEMS[1:]]
    starts = []
    signature = 2 if change == "signature" else 1
    io.write_resumable(
        items, tmp_path / "out", lambda s, p: starts.append(s) or shout(s, p), signature=signature, chunk=4
    )
    assert starts == [0, 4, 8]
    assert len((tmp_path / "out").read_text().splitlines()) == 10


def test_an_empty_input_gives_an_empty_file(tmp_path):
    io.write_resumable([], tmp_path / "out", shout, signature=1)
    assert (tmp_path / "out").read_bytes() == b""


def test_an_unwritable_output_is_named(tmp_path):
    with pytest.raises(LinesError, match="absent/out: No such file"):
        io.write_resumable(ITEMS, tmp_path / "absent" / "out", shout, signature=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_no_resume_is_promised_for_what_is_no_regular_file():
    with pytest.raises(io.LinesError, match=r"/dev/full: No space left .* with room$"):
        io.write_resumable(ITEMS, "/dev/full", shout, signature=1)


def test_formats():
    assert io.parse(["a\tb"], "lines", "f", "ar") == [Item("a\tb")]
    assert io.parse(["a\tb", "c\t"], "tsv", "f", "ar") == [Item("a", "b"), Item("c", "")]
    line = '{"source": "a", "target": "x <mask>", "id": 7}'
    (item,) = io.parse([line], "jsonl", "f", "nar")
    assert (item.source, item.text) == ("a", "x <mask>")
    assert io.parse(['{"source": "a", "target": null}'], "jsonl", "f", "ar")[0].text is None
    output = Output("y", -0.5, [7], {"passes": 3}, (Output("z", -0.7, [8]),))
    assert json.loads(io.render(1, item, output, "jsonl", scores=False, nbest=1)) == {
        "source": "a", "target": "x <mask>", "id": 7, "text": "y", "score": -0.5, "tokens": [7], "statistics": {"passes": 3},
    }  # fmt: skip
    assert json.loads(io.render(1, item, output, "jsonl", scores=False, nbest=2))["others"][0]["text"] == "z"
    assert io.render(4, item, output, "lines", scores=False, nbest=2) == "4\t-0.5000\ty\n4\t-0.7000\tz"
    output = Output("y", -0.5, [7])
    assert io.render(4, item, output, "lines", scores=True, nbest=1) == "-0.5000\ty"
    assert io.render(4, item, output, "tsv", scores=False, nbest=1) == "a\ty"
    # A byte-level tokenizer can produce a TAB; the line stays one that can be read.
    assert io.render(4, item, Output("y\tz", -0.5, [7]), "tsv", scores=False, nbest=1) == "a\ty z"


@pytest.mark.parametrize(
    ("lines", "form", "mode", "message"),
    [
        (["a", "b\tc\td"], "tsv", "ar", "f, line 2: 3 columns; give source, or source TAB prefix"),
        (["a\tb"], "tsv", "ctc", "f, line 1: 2 columns; give the source alone: mode ctc takes nothing else"),
        (["a\tb", "c"], "tsv", "ar", "f, line 2: no prefix, which other lines have"),
        (["{"], "jsonl", "ar", "f, line 1: not JSON"),
        (["[" * 100_000], "jsonl", "ar", "f, line 1: not JSON (nested too deeply)"),
        (['{"source": "a\\ud800"}'], "jsonl", "ar", "f, line 1: half a surrogate pair (\\ud800)"),
        (['{"source": "a", "x": ["\\ude00"]}'], "jsonl", "ar", "f, line 1: half a surrogate pair (\\ude00)"),
        (['{"source": "a", "x": %s}' % ("9" * 5000)], "jsonl", "ar", "f, line 1: Exceeds the limit"),
        (['{"text": "a"}'], "jsonl", "ar", 'f, line 1: no text under "source"'),
        (['{"source": "a", "prefix": 3}'], "jsonl", "ar", '"prefix" must be text'),
        (['{"source": "a", "target": "x"}'], "jsonl", "ar", '"target" is for mode nar and infill; mode ar takes none'),
        (['{"source": "a", "prefix": "x"}'], "jsonl", "ctc", '"prefix" is for mode ar; mode ctc takes none'),
        (['{"source": "a", "infill": ["x"]}'], "jsonl", "nar", '"infill" is for mode infill; mode nar takes none'),
        (['{"source": "a", "infill": "x"}'], "jsonl", "infill", '"infill" must be a list of texts'),
    ],
)
def test_lines_of_another_form_are_named(lines, form, mode, message):
    with pytest.raises(LinesError) as caught:
        io.parse(lines, form, "f", mode)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def fails_after(count):
    def decode(start, part):
        if start >= count:
            raise LinesError("stop")
        return shout(start, part)

    return decode


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/out")
    io.write_resumable(ITEMS, tmp_path / "link", shout, signature=1)
    io.write_bytes(tmp_path / "link", (tmp_path / "link").read_bytes())
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder/out").read_text() == expected()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["out"]


def test_a_fifo_gets_each_chunk_and_stays(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE, text=True)
    io.write_resumable(ITEMS, tmp_path / "fifo", shout, signature=1, chunk=3)
    assert reader.communicate(timeout=60)[0] == expected()
    assert (tmp_path / "fifo").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_two_runs_cannot_write_the_same_file_at_once(tmp_path):
    (tmp_path / "link").symlink_to("out")

    def decode(start, part):
        if start == 3:
            for name in ("out", "link"):
                with pytest.raises(LinesError, match="another process is writing it"):
                    io.write_resumable(ITEMS, tmp_path / name, shout, signature=2)
        return shout(start, part)

    io.write_resumable(ITEMS, tmp_path / "out", decode, signature=1, chunk=3)
    assert (tmp_path / "out").read_text() == expected()
    io.write_resumable(ITEMS[:2], tmp_path / "link", shout, signature=2)  # the lock is gone
    assert (tmp_path / "out").read_text() == expected(2)


@pytest.mark.parametrize("damage", ["other job", "changed bytes", "missing bytes", "done", "nested", "list"])
def test_a_state_that_does_not_fit_its_records_is_not_resumed(tmp_path, damage):
    with pytest.raises(LinesError):
        io.write_resumable(ITEMS, tmp_path / "out", fails_after(4), signature=1, chunk=4)
    partial, state = tmp_path / "out.partial", tmp_path / "out.state.json"
    saved = json.loads(state.read_text())
    if damage == "other job":  # killed before its first state
        with pytest.raises(LinesError):
            io.write_resumable(ITEMS, tmp_path / "out", fails_after(0), signature=2)
        partial.write_text("x" * 100)
    elif damage == "changed bytes":
        partial.write_bytes(partial.read_bytes().replace(b"L", b"M"))
    elif damage == "missing bytes":
        partial.write_bytes(partial.read_bytes()[:-1])
    elif damage == "done":
        state.write_text(json.dumps(saved | {"done": 10**6}))
    else:
        state.write_text("[" * 100_000 if damage == "nested" else "[]")
    starts = []
    io.write_resumable(ITEMS, tmp_path / "out", lambda s, p: starts.append(s) or shout(s, p), signature=1, chunk=4)
    assert starts == [0, 4, 8]
    assert (tmp_path / "out").read_text() == expected()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_in_the_first_chunk_leaves_nothing(tmp_path):
    with pytest.raises(LinesError):
        io.write_resumable(ITEMS, tmp_path / "out", fails_after(0), signature=1)
    assert not list(tmp_path.iterdir())


def test_files_are_checked_before_they_are_written(tmp_path):
    (tmp_path / "in").write_text("a\n")
    (tmp_path / "link").symlink_to("in")
    os.mkfifo(tmp_path / "fifo")
    io.check_outputs({"--input": str(tmp_path / "in")}, {"--output": str(tmp_path / "out"), "--trace": None})
    io.check_outputs({"--input": str(tmp_path / "fifo")}, {"--output": str(tmp_path / "fifo")})
    cases = [
        (tmp_path, "Is a directory"),
        ("", "empty file name"),
        (tmp_path / "no/out", "No such file or directory"),
        (tmp_path / "in/out", "Not a directory"),
        (tmp_path / "link", "--input names the same file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]
    for path, message in cases:
        with pytest.raises(LinesError) as caught:
            io.check_outputs({"--input": str(tmp_path / "in")}, {"--trace": str(path)})
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"--trace={path}")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "link", "fifo"}
