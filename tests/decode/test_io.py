"""Lines in and out."""

import logging

import pytest

from janus_jax.decode.io import LinesError, read_lines, split_lines, write_lines


def test_lines_split_at_line_feeds_alone():
    data = "a\u2028b\x0bc\x85\n\n x\r\nlast".encode()
    assert split_lines(data, "x") == ["a\u2028b\x0bc\x85", "", " x", "last"]
    assert split_lines(b"\xef\xbb\xbfa\n\xef\xbb\xbfb", "x") == ["a", "\ufeffb"]  # a byte-order mark stands first
    assert split_lines(b"", "x") == []
    assert split_lines(b"\n", "x") == [""]


def test_broken_bytes_are_replaced_and_reported(caplog):
    with caplog.at_level(logging.WARNING):
        assert split_lines(b"ok\n\xff\xfe\nok", "some.txt") == ["ok", "\ufffd\ufffd", "ok"]
    assert "some.txt" in caplog.text
    assert "1 lines: 2" in caplog.text


def test_what_is_written_is_read_back_line_for_line(tmp_path):
    lines = ["a\nb\r", "", "\u2028", "ü"]
    write_lines(tmp_path / "out.txt", lines)
    assert read_lines(tmp_path / "out.txt") == ["a b ", "", "\u2028", "ü"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(LinesError, match=r"missing\.txt"):
        read_lines(tmp_path / "missing.txt")
    with pytest.raises(LinesError, match="writable"):
        write_lines(tmp_path / "no" / "out.txt", ["a"])
