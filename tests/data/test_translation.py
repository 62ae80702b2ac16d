"""The parallel files of the papers' tasks, made from small archives in the formats of the original downloads."""

import gzip
import hashlib
import io
import json
import tarfile

import pytest

from janus_jax.data import translation
from janus_jax.data.errors import DataError
from janus_jax.data.translation import CORPORA, Download, is_kept, main, words
from tests.docs.commands import TINY
from tests.launchers import launch, needs_environment

TAGS = {
    "de": "<url>http://x</url>\n<keywords>talks, a</keywords>\n<talkid>1</talkid>\n<title>Ein Vortrag</title>\n"
    "<description>Über Hunde: Er bellt.</description>\n",
    "en": "<url>http://x</url>\n<keywords>talks, b</keywords>\n<talkid>1</talkid>\n<title>A talk</title>\n"
    "<description>On dogs: it barks.</description>\n",
}
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
TEST_FILES = [f"de-en/IWSLT14.{name}.de-en.{lang}.xml" for name in TESTS for lang in ("de", "en")]
SEGMENTS = {"de": "R&amp;D: \u201eGut\u201c, sagt er\u2019s.", "en": 'R&amp;D - "good", he says; it\u2019s so.'}


def archive(path, members):
    """Writes a .tgz of texts."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))


def xml(text, count):
    lines = "".join(f'<seg id="{i}"> {text} {i} </seg>\n' for i in range(1, count + 1))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<doc docid="1">\n<talkid>5</talkid>\n{lines}</doc>\n</mteval>\n'


def iwslt(folder, **changes):
    """de-en.tgz with 2 + 46 training pairs, one of which is too unequal, and 5 test files of 2 pairs."""
    members = {}
    for lang, word in (("de", "Hund"), ("en", "dog")):
        numbers = "".join(f"{word} {i}, {word}!\n" for i in range(45))
        unequal = "eins\n" if lang == "de" else "one two three\n"
        members[f"de-en/train.tags.de-en.{lang}"] = TAGS[lang] + numbers + unequal
    members |= {name: xml(SEGMENTS[name.split("-")[-1][3:5]], 2) for name in TEST_FILES}
    folder.mkdir()
    archive(folder / "de-en.tgz", members | changes)
    return folder


def test_iwslt_from_its_archive(tmp_path, capsys):
    argv = [f"--downloads={iwslt(tmp_path / 'raw')}", f"--output={tmp_path / 'out'}", "--corpus=iwslt14", "--unchecked"]
    assert main(argv) == 0
    lines = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").iterdir()}
    assert len(lines) == 9
    assert lines["train.en"][:3] == ["a talk", "on dogs : it barks .", "dog 0 , dog !"]
    assert lines["train.de"][1] == "über hunde : er bellt ."
    # Of 47 kept pairs, the 23rd and the 46th are for validation.
    assert lines["valid.de"] == ["hund 20 , hund !", "hund 43 , hund !"]
    assert len(lines["train.de"]) == len(lines["train.en"]) == 45
    assert "one two three" not in lines["train.en"]
    assert len(lines["test.de"]) == 10
    assert lines["test.en"][0] == 'r & d - " good " , he says ; it \'s so . 1'
    assert lines["test.plain.en"][1] == ' r&d - "good", he says; it\u2019s so. 2 '
    about = json.loads((tmp_path / "out/corpus.json").read_text())
    assert about["read"] == {"test": 10, "train": 48}
    assert about["pairs"] == {"train": 45, "valid": 2, "test": 10}
    assert f"{tmp_path}/out/train: 45 pairs\n" in capsys.readouterr().out
    assert main(argv) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*argv[:2], "--corpus=wmt16"]) == 2
    assert "holds iwslt14 already" in capsys.readouterr().err


def test_several_processes_give_the_same_files(tmp_path):
    raw = iwslt(tmp_path / "raw")
    for count in (1, 2):
        translation.make("iwslt14", raw, tmp_path / str(count), checked=False, processes=count)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def wmt16(folder):
    """The three files of English-Romanian: Europarl, SETIMES as TMX, and the test sets as SGML."""
    folder.mkdir()
    sides = {"ro": "Aceşti câini,\tîn ţară (aici).\n\n", "en": "These dogs,\u0007 in the country (here).\nA line.\n"}
    archive(
        folder / "training-parallel-ep-v8.tgz",
        {f"training-parallel-ep-v8/europarl-v8.ro-en.{lang}": text for lang, text in sides.items()},
    )
    units = "".join(
        f'<tu><tuv xml:lang="en"><seg>{en}</seg></tuv><tuv xml:lang="ro"><seg>{ro}</seg></tuv></tu>\n'
        for en, ro in (("Hello &amp; welcome", "Bun venit"), ("one", "unu"))
    )
    with gzip.open(folder / "en-ro.tmx.gz", "wt", encoding="utf-8") as stream:
        stream.write(f'<?xml version="1.0" encoding="utf-8"?>\n<tmx version="1.4"><body>\n{units}</body></tmx>\n')
    members = {}
    for name, count in (("newsdev2016", 3), ("newstest2016", 2)):
        members[f"dev/{name}-roen-src.ro.sgm"] = xml("Un câine.", count)
        members[f"dev/{name}-roen-ref.en.sgm"] = xml("A dog.", count)
    archive(folder / "dev.tgz", members)
    return folder


def test_wmt16_from_its_archives(tmp_path):
    about = translation.make("wmt16", wmt16(tmp_path / "raw"), tmp_path / "out", checked=False)
    lines = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").iterdir()}
    # A tab and a bell become spaces, old letters the new ones; the pair with an empty side and an unequal one are dropped.
    assert lines["train.ro"] == ["Acești câini , în țară ( aici ) .", "Bun venit", "unu"]
    assert lines["train.en"] == ["These dogs , in the country ( here ) .", "Hello & welcome", "one"]
    assert lines["test.en"] == ["A dog . 1", "A dog . 2"]
    assert lines["test.plain.ro"] == [" Un câine. 1 ", " Un câine. 2 "]
    assert about["pairs"] == {"train": 3, "valid": 3, "test": 2}


def test_wmt14_from_its_archives(tmp_path):
    (tmp_path / "raw").mkdir()
    files = {}
    for part in CORPORA["wmt14"].parts:
        for member, lang in zip(part.members, ("de", "en"), strict=True):
            text = "Ein gut-er Tag." if lang == "de" else "A good-ish day."
            content = xml(text, 2) if member.endswith(".sgm") else f"{text}\n"
            files.setdefault(part.file, {})[member] = content
    for name, members in files.items():
        archive(tmp_path / "raw" / name, members)
    translation.make("wmt14", tmp_path / "raw", tmp_path / "out", checked=False)
    assert (tmp_path / "out/train.en").read_text() == "A good @-@ ish day .\n" * 3
    assert (tmp_path / "out/valid.de").read_text() == "Ein gut @-@ er Tag .\n"
    assert (tmp_path / "out/test.de").read_text().count("\n") == 2


def test_lengths_and_ratios_that_are_kept():
    corpus = CORPORA["iwslt14"]
    for short, long, kept in (
        (2, 3, True),
        (3, 2, True),
        (1, 2, False),
        (0, 0, False),
        (0, 1, False),
        (150, 176, False),
    ):
        assert is_kept(("a " * short, "b " * long), corpus) == kept
    assert is_kept(("a " * 175, "b " * 175), corpus)


def test_words_of_the_rules():
    assert words("It's 3.5% - don't!", "en", CORPORA["iwslt14"], training=True) == "it 's 3.5 % - don 't !"
    assert words("« Well-known » …", "en", CORPORA["wmt14"], training=True) == '" Well @-@ known " ...'


def test_the_test_split_keeps_its_characters_but_for_the_apostrophe():
    """As in the reference scripts: references are those of the published scores."""
    assert (
        words("\u201eGut\u201c \u2026 er\u2019s", "de", CORPORA["wmt14"], training=False)
        == "\u201e Gut \u201c \u2026 er ' s"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict.fromkeys(TEST_FILES, "no segment\n"), "split test has 0 pairs"),
        ({"de-en/IWSLT14.TED.tst2011.de-en.en.xml": xml("x", 1)}, "tst2011.de-en.en.xml has only 1 texts"),
        ({"de-en/train.tags.de-en.de": "nur eine Zeile\n"}, "train.tags.de-en.de has only 1 texts"),
    ],
)
def test_sides_of_different_length_are_an_error_and_leave_nothing(tmp_path, changes, message):
    raw = iwslt(tmp_path / "raw", **changes)
    with pytest.raises(DataError, match=message):
        translation.make("iwslt14", raw, tmp_path / "out", checked=False)
    assert not list((tmp_path / "out").iterdir())


def test_files_of_something_else_are_not_replaced(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train.de").write_text("precious")
    with pytest.raises(DataError, match=r"out holds train\.de and no corpus\.json: .* move them away"):
        translation.make("iwslt14", iwslt(tmp_path / "raw"), tmp_path / "out", checked=False)
    assert (tmp_path / "out/train.de").read_text() == "precious"
    for content in ("{}", "[1]", "none"):
        (tmp_path / "out/corpus.json").write_text(content)
        flags = ["--corpus=iwslt14", f"--downloads={tmp_path}", f"--output={tmp_path / 'out'}"]
        assert translation.main(flags) == 2
        assert "corpus.json: not of this command; name another folder" in capsys.readouterr().err


def test_wrong_downloads_are_named(tmp_path, monkeypatch, capsys):
    raw = iwslt(tmp_path / "raw")
    argv = [f"--downloads={raw}", f"--output={tmp_path / 'out'}"]
    assert main([*argv, "--corpus=wmt16"]) == 2
    error = capsys.readouterr().err
    assert error.count("is missing: get it from http") == 3
    assert error.count("\n") == 1
    data = (raw / "de-en.tgz").read_bytes()
    good = Download("http://x/de-en.tgz", len(data), hashlib.sha256(data).hexdigest())
    corpus = CORPORA["iwslt14"]
    for download, message in (
        (Download(good.url, len(data) + 1, good.sha256), f"has {len(data)} bytes, not {len(data) + 1}"),
        (Download(good.url, len(data), "0" * 64), "is not the published file (SHA-256)"),
        (good, "split test has 10 pairs, not 6750"),
    ):
        changed = {"iwslt14": corpus.__class__(**{**vars(corpus), "downloads": (download,)})}
        monkeypatch.setattr(translation, "CORPORA", changed)
        assert main([*argv, "--corpus=iwslt14"]) == 2
        assert message in capsys.readouterr().err
    (raw / "de-en.tgz").write_bytes(data[: len(data) // 2])
    assert main([*argv, "--corpus=iwslt14", "--unchecked"]) == 2
    assert "is damaged" in capsys.readouterr().err
    (raw / "de-en.tgz").write_bytes(data[:-8] + bytes(8))  # the checksum at the end
    assert main([*argv, "--corpus=iwslt14", "--unchecked"]) == 2
    assert "is damaged (CRC check failed" in capsys.readouterr().err
    archive(raw / "de-en.tgz", {"de-en/other": "x"})
    assert main([*argv, "--corpus=iwslt14", "--unchecked"]) == 2
    assert "there is no file de-en/IWSLT14.TED.dev2010.de-en.de.xml in it" in capsys.readouterr().err


@needs_environment("requirements.txt")
@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_one_command_goes_from_the_archive_to_the_scores(tmp_path, again):
    raw, out = iwslt(tmp_path / "raw"), tmp_path / "out"
    settings = [*TINY, "--config.text.vocab_size=60", "--config.train.checkpoint_every=2"]
    run = launch("reproduce.sh", "iwslt14", raw, out, "--unchecked", *settings)
    assert run.returncode == 0, run.stderr
    table = (out / "scores.md").read_text()
    assert run.stdout.endswith(table)
    assert "bleu_words" in table
    for setting in ("ar:beam=5", "ar:beam=1", "nar", "nar:passes=1"):
        assert f"| {setting} " in table
    if again:
        before = {path: path.stat().st_mtime_ns for path in (out / "average").rglob("*")}
        (out / "scores.md").unlink()
        run = launch("reproduce.sh", "iwslt14", raw, out, "--unchecked", *settings)
        assert run.returncode == 0, run.stderr
        assert before == {path: path.stat().st_mtime_ns for path in (out / "average").rglob("*")}
        assert table.count("|") == (out / "scores.md").read_text().count("|")


def test_wrong_calls_end_before_any_work(tmp_path):
    for arguments, message in (
        (["iwslt14", tmp_path], "give a task"),
        (["iwslt17", tmp_path, tmp_path / "out"], "iwslt17: give iwslt14, wmt14 or wmt16"),
        (["wmt16", tmp_path, tmp_path / "out", "--steps=3"], "--steps=3: give --preset=NAME"),
        (["wmt14", tmp_path, tmp_path / "out", "--preset=wmt16_enro"], "name a preset of configs/mt.py for wmt14"),
    ):
        run = launch("reproduce.sh", *arguments)
        assert run.returncode == 2
        assert message in run.stderr
    assert not (tmp_path / "out").exists()
