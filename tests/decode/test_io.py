"""Lines in and out."""

import bz2
import gzip
import logging
import lzma

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


def test_compressed_files_are_read_by_their_ending(tmp_path):
    content = b"a\r\n\n\xc3\xbc\n\n"
    for ending, opener in ((".gz", gzip.open), (".xz", lzma.open)):
        with opener(tmp_path / f"in{ending}", "wb") as file:
            file.write(content)
        assert read_lines(tmp_path / f"in{ending}") == ["a", "", "ü", ""]
    whole = lzma.compress(content * 1000)
    (tmp_path / "cut.xz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.gz").write_bytes(content)
    for name in ("cut.xz", "plain.gz"):
        with pytest.raises(LinesError, match=rf"{name}: .*; name a readable text file"):
            read_lines(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"a\n"), "compressed by gzip; .* ends in .gz"),
        (lzma.compress(b"a\n"), "compressed by xz; .* ends in .xz"),
        (bz2.compress(b"a\n"), "compressed by bzip2; unpack it with bunzip2"),
        (b"PK\x03\x04\x14\x00", "a zip archive; unpack it with unzip"),
        (b"\x28\xb5\x2f\xfd\x04\x00\x11\x00\x00a\n", "compressed by Zstandard; unpack it with unzstd"),
        ("\ufeffa\n".encode("utf-16-le"), "UTF-16; convert it with iconv -f UTF-16 -t UTF-8"),
        ("\ufeffa\n".encode("utf-16-be"), "UTF-16; convert it with iconv -f UTF-16 -t UTF-8"),
    ],
    ids=["gzip", "xz", "bzip2", "zip", "zstd", "utf-16-le", "utf-16-be"],
)
def test_what_is_not_text_is_refused(tmp_path, content, message):
    (tmp_path / "in.txt").write_bytes(content)
    with pytest.raises(LinesError, match=f"in.txt: {message}"):
        read_lines(tmp_path / "in.txt")


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(LinesError, match=r"missing\.txt"):
        read_lines(tmp_path / "missing.txt")
    with pytest.raises(LinesError, match="writable"):
        write_lines(tmp_path / "no" / "out.txt", ["a"])
