"""Makes the parallel files of the papers' translation tasks from the original downloads.

    python -m janus_jax.data.translation --corpus=iwslt14 --downloads=downloads --output=data/iwslt14

The downloads are not unpacked, and nothing is fetched. The files that a corpus needs:
  iwslt14   de-en.tgz
  wmt14     training-parallel-europarl-v7.tgz, training-parallel-commoncrawl.tgz, training-parallel-nc-v9.tgz, dev.tgz
  wmt16     training-parallel-ep-v8.tgz, en-ro.tmx.gz, dev.tgz

Writes train, valid and test, as train.de and train.en: Moses words, a space between them; IWSLT in lower case, as is
usual. test.plain.de and test.plain.en hold the test split before it was cut into words. corpus.json says what was read
and dropped. docs/reproduce.md has the rules.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import html
import itertools
import json
import multiprocessing
import os
import re
import sys
import tarfile
import tempfile
import unicodedata
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax import files
from janus_jax.command_line import ArgumentParser, report_mistakes
from janus_jax.data.errors import DataError

Lines = Iterable[str]
SPLITS = ("train", "valid", "test")
FINISHED = "corpus.json"  # written last
_UNFINISHED = ".partial-"


@dataclass(frozen=True)
class Download:
    """An original file; `size` (bytes) and `sha256` are 0 and "" where nobody has published them."""

    url: str
    size: int = 0
    sha256: str = ""

    @property
    def name(self) -> str:
        return re.split("[/=]", self.url)[-1]


@dataclass(frozen=True)
class Part:
    """One source of pairs.

    Attributes:
      split: that the pairs go to.
      file: name of the download.
      members: of an archive, one for each language; LANG stands for it. Empty: the download is a TMX file.
      read: raw lines of a member -> its texts.
    """

    split: str
    file: str
    members: tuple[str, str] | tuple[()] = ()
    read: Callable[[Lines], Lines] = iter


@dataclass(frozen=True)
class Corpus:
    """A translation task: its files and how they are cleaned.

    Attributes:
      languages: in the order of the members.
      lower_case: of all words.
      longest: the most words of a side of a training pair; ratio: the most words of one side per word of the other. As in
        Moses' clean-corpus-n.perl.
      valid_every: each n-th clean training pair is for validation; 0: validation has parts of its own.
      normal: training text gets Moses' normal punctuation, and loses characters that are not printed.
      split_hyphens: as words of their own (Moses' tokenizer with -a).
      counts: pairs of each split by the reference scripts, as far as known.
    """

    languages: tuple[str, str]
    downloads: tuple[Download, ...]
    parts: tuple[Part, ...]
    lower_case: bool = False
    longest: int = 250
    ratio: float = 1.5
    valid_every: int = 0
    normal: bool = False
    split_hyphens: bool = False
    counts: tuple[tuple[str, int], ...] = ()


_SEGMENT = re.compile(r'<seg id="[^"]*">(.*?)</seg>')
_TALK = re.compile("<url>|<talkid>|<keywords>")
_TITLE = re.compile("</?(title|description)>")


def talks(lines: Lines) -> Iterator[str]:
    """The texts of a training file of IWSLT, in which each talk has lines with marks about it."""
    return (_TITLE.sub("", line) for line in lines if not _TALK.search(line))


def segments(lines: Lines) -> Iterator[str]:
    """The texts of an XML or SGML file of a test set."""
    for line in lines:
        yield from map(html.unescape, _SEGMENT.findall(line))


def translation_units(file: Path, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The pairs of a TMX file (.gz)."""
    xml_lang = "{http://www.w3.org/XML/1998/namespace}lang"
    with gzip.open(file) as stream:
        for _, unit in ElementTree.iterparse(stream):
            if unit.tag != "tu":
                continue
            texts = {tuv.get(xml_lang, tuv.get("lang")): tuv.findtext("seg") or "" for tuv in unit.iter("tuv")}
            if set(languages) <= texts.keys():
                yield texts[languages[0]], texts[languages[1]]
            unit.clear()


_EUROPARL_7 = Download(
    "http://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
    657632379,
    "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
)
_CRAWL = Download(
    "http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
    918311367,
    "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
)
_NEWS_9 = Download(
    "http://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
    80418416,
    "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
)
_EUROPARL_8 = Download(
    "http://data.statmt.org/wmt16/translation-task/training-parallel-ep-v8.tgz",
    225018324,
    "8917bd3bef3bc894c8519ca1f8a4c7c330aad08a1263655a9d99ee13d532e3c7",
)
_SETIMES = Download(
    "http://opus.nlpl.eu/download.php?f=SETIMES/v2/tmx/en-ro.tmx.gz",
    23458958,
    "56bfaa2a8c8bdfccb7b50cc926067e2291347d807004e81faab8762ddbf26302",
)
_DEV = Download(
    "http://data.statmt.org/wmt19/translation-task/dev.tgz",
    38654961,
    "7a7deccf82ebb05ba508dba5eb21356492224e8f630ec4f992132b029b4b25e7",
)

# Sizes and sums are those of TensorFlow Datasets 4.9.10 (url_checksums). Members, rules and counts of IWSLT are those of
# fairseq's prepare-iwslt14.sh; members of WMT those of TensorFlow Datasets, rules those of prepare-wmt14en2de.sh.
CORPORA: dict[str, Corpus] = {
    "iwslt14": Corpus(
        ("de", "en"),
        (Download("http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"),),
        (
            Part("train", "de-en.tgz", ("de-en/train.tags.de-en.de", "de-en/train.tags.de-en.en"), talks),
            *(
                Part("test", "de-en.tgz", tuple(f"de-en/IWSLT14.{name}.de-en.{lang}.xml" for lang in ("de", "en")), segments)
                for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
            ),
        ),
        lower_case=True,
        longest=175,
        valid_every=23,
        counts=(("train", 160_239), ("valid", 7283), ("test", 6750)),
    ),
    "wmt14": Corpus(
        ("de", "en"),
        (_EUROPARL_7, _CRAWL, _NEWS_9, _DEV),
        (
            Part("train", _EUROPARL_7.name, ("training/europarl-v7.de-en.de", "training/europarl-v7.de-en.en")),
            Part("train", _CRAWL.name, ("commoncrawl.de-en.de", "commoncrawl.de-en.en")),
            Part("train", _NEWS_9.name, ("training/news-commentary-v9.de-en.de", "training/news-commentary-v9.de-en.en")),
            Part("valid", _DEV.name, ("dev/newstest2013.de", "dev/newstest2013.en")),
            Part("test", _DEV.name, ("dev/newstest2014-deen-src.de.sgm", "dev/newstest2014-deen-ref.en.sgm"), segments),
        ),
        normal=True,
        split_hyphens=True,
        counts=(("valid", 3000), ("test", 3003)),
    ),
    "wmt16": Corpus(
        ("ro", "en"),
        (_EUROPARL_8, _SETIMES, _DEV),
        (
            Part(
                "train",
                _EUROPARL_8.name,
                ("training-parallel-ep-v8/europarl-v8.ro-en.ro", "training-parallel-ep-v8/europarl-v8.ro-en.en"),
            ),
            Part("train", _SETIMES.name),
            Part("valid", _DEV.name, ("dev/newsdev2016-roen-src.ro.sgm", "dev/newsdev2016-roen-ref.en.sgm"), segments),
            Part("test", _DEV.name, ("dev/newstest2016-roen-src.ro.sgm", "dev/newstest2016-roen-ref.en.sgm"), segments),
        ),
        normal=True,
        counts=(("valid", 1999), ("test", 1999)),
    ),
}  # fmt: skip


def check_downloads(corpus: Corpus, folder: Path, *, published: bool) -> dict[str, str]:
    """Checks that all downloads are there and, if `published`, that they have the published sizes and sums.

    Returns:
      The SHA-256 of each file.

    Raises:
      DataError: a file is missing or another one; the message names all that are.
    """
    wrong = []
    for download in corpus.downloads:
        path = folder / download.name
        if not path.is_file():
            wrong.append(f"{path} is missing: get it from {download.url}")
        elif published and download.size and path.stat().st_size != download.size:
            size = path.stat().st_size
            wrong.append(f"{path} has {size} bytes, not {download.size}: get it again from {download.url}")
    if wrong:
        raise DataError("; ".join(wrong))
    sums = {}
    for download in corpus.downloads:
        path = folder / download.name
        with path.open("rb") as stream:
            sums[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        if not (published and download.sha256):
            _check_whole(path)
        elif sums[path.name] != download.sha256:
            raise DataError(f"{path} is not the published file (SHA-256): get it again from {download.url}")
    return sums


def _check_whole(path: Path) -> None:
    """Reads a gzip file to its end, where its checksum is."""
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); get it again") from error


def read_pairs(part: Part, folder: Path, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The raw pairs of a part.

    Raises:
      DataError: the file is damaged, a member is missing, or its two sides have not the same number of texts.
    """
    path = folder / part.file
    try:
        if not part.members:
            yield from translation_units(path, languages)
            return
        # An archive is read once for each side: members cannot be read at the same time.
        with tarfile.open(path) as one, tarfile.open(path) as other:
            sides = [part.read(_member(a, m)) for a, m in zip((one, other), part.members, strict=True)]
            for number, pair in enumerate(itertools.zip_longest(*sides), 1):
                if None in pair:
                    short = part.members[pair.index(None)]
                    raise DataError(f"{path}: {short} has only {number - 1} texts, fewer than the other language")
                yield pair
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ElementTree.ParseError) as error:
        raise DataError(f"{path} is damaged ({error}); get it again") from error


def _member(archive: tarfile.TarFile, name: str) -> Iterator[str]:
    try:
        stream = archive.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise DataError(f"{archive.name}: there is no file {name} in it; is it the archive of another year?")
    with stream:
        # Lines end at \n alone: Europarl holds other characters that Python takes for ends of lines.
        yield from (line.decode("utf-8", errors="replace").rstrip("\r\n") for line in stream)


_CEDILLAS = str.maketrans("ŞşŢţ", "ȘșȚț")


@functools.cache
def _moses(lang: str):
    from sacremoses import MosesPunctNormalizer, MosesTokenizer  # its tables take half a second

    return MosesPunctNormalizer(lang=lang, perl_parity=True), MosesTokenizer(lang=lang)


def plain(text: str, lang: str) -> str:
    """A text in which Romanian has one form of the letters with a comma below; older text has a cedilla in its place."""
    return text.translate(_CEDILLAS) if lang == "ro" else text


def words(text: str, lang: str, corpus: Corpus, *, training: bool) -> str:
    """A text as Moses words with a space between them, by the rules of a corpus; no character is written as an entity."""
    normalizer, tokenizer = _moses(lang)
    text = plain(text, lang)
    if not training:
        text = text.replace("\u2019", "'")
    elif corpus.normal:
        text = normalizer.normalize(text)
        text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    line = tokenizer.tokenize(text, return_str=True, escape=False, aggressive_dash_splits=corpus.split_hyphens)
    line = " ".join(line.split())
    return line.lower() if corpus.lower_case else line


def _words_of_both(pair: tuple[str, str], corpus: Corpus, training: bool) -> tuple[str, ...]:
    return tuple(
        words(text, lang, corpus, training=training) for text, lang in zip(pair, corpus.languages, strict=True)
    )


def is_kept(pair: Sequence[str], corpus: Corpus) -> bool:
    """Whether a training pair has a length and a ratio of lengths within the bounds."""
    shorter, longer = sorted(len(line.split()) for line in pair)
    return shorter >= 1 and longer <= corpus.longest and longer <= corpus.ratio * shorter


def make(name: str, downloads: Path, output: Path, *, checked: bool = True, processes: int = 1) -> dict[str, Any]:
    """Writes the parallel files of a corpus: all of them, or none.

    Args:
      name: a key of CORPORA.
      downloads: folder of the original files.
      output: folder to write.
      checked: compare sizes, sums and numbers of pairs with the published ones.
      processes: that cut text into words.

    Returns:
      The content of corpus.json.

    Raises:
      DataError: see `check_downloads` and `read_pairs`; files of these names are there already; or a split that is not
        cleaned has another number of pairs than it should have.
      OSError: a file cannot be written.
    """
    corpus = CORPORA[name]
    for left in output.glob(f"{_UNFINISHED}*"):
        print(f"{left}: left by a call that was killed; remove it unless the call still runs", file=sys.stderr)
    names = [f"{split}.{language}" for split in (*SPLITS, "test.plain") for language in corpus.languages]
    if present := [name for name in names if (output / name).exists()]:
        raise DataError(
            f"{output} holds {', '.join(present)} and no {FINISHED}: these files are of something else, or of a call that was "
            "killed; move them away, or name another folder"
        )
    sums = check_downloads(corpus, downloads, published=checked)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=_UNFINISHED) as folder:
        about = {"corpus": name, "languages": list(corpus.languages), "sha256": sums}
        about |= _write(name, corpus, downloads, Path(folder), checked, processes)
        for path in sorted(Path(folder).iterdir()):
            path.rename(output / path.name)
    files.write_bytes(output / FINISHED, f"{json.dumps(about, indent=2)}\n".encode())
    return about


def _write(
    name: str, corpus: Corpus, downloads: Path, folder: Path, checked: bool, processes: int
) -> dict[str, dict[str, int]]:
    """Writes the files into `folder`; returns the numbers of pairs."""
    expected = dict(corpus.counts)
    counts: Counter[str] = Counter()
    read: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        streams = {
            (split, lang): stack.enter_context((folder / f"{split}.{lang}").open("w", encoding="utf-8", newline="\n"))
            for split in (*SPLITS, "test.plain")
            for lang in corpus.languages
        }

        def write(split: str, pair: Sequence[str]) -> None:
            for lang, text in zip(corpus.languages, pair, strict=True):
                streams[split, lang].write(f"{text}\n")

        # The short splits first: a wrong file shows before the long work.
        for part in (part for part in corpus.parts if part.split != "train"):
            for pair in read_pairs(part, downloads, corpus.languages):
                write(part.split, _words_of_both(pair, corpus, False))
                if part.split == "test":
                    texts = [plain(text, lang) for text, lang in zip(pair, corpus.languages, strict=True)]
                    write("test.plain", [text.lower() if corpus.lower_case else text for text in texts])
                counts[part.split] += 1
        read += counts
        for split in sorted({part.split for part in corpus.parts} - {"train"}):
            if not counts[split] or (checked and counts[split] != expected[split]):
                raise DataError(f"{name}: split {split} has {counts[split]} pairs, not {expected[split]}")
        apply = stack.enter_context(_mapper(processes))
        for part in (part for part in corpus.parts if part.split == "train"):
            pairs = read_pairs(part, downloads, corpus.languages)
            for pair in apply(functools.partial(_words_of_both, corpus=corpus, training=True), pairs):
                read["train"] += 1
                if is_kept(pair, corpus):
                    number = counts["train"] + (counts["valid"] if corpus.valid_every else 0) + 1
                    split = "valid" if corpus.valid_every and number % corpus.valid_every == 0 else "train"
                    counts[split] += 1
                    write(split, pair)
    return {"read": dict(read), "pairs": {split: counts[split] for split in SPLITS}, "published": expected}


@contextlib.contextmanager
def _mapper(processes: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    """`map`, in this process or in several."""
    if processes == 1:
        yield map
        return
    # Spawned and not forked: a fork of a process with threads, such as those of JAX, may hang.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield functools.partial(pool.imap, chunksize=200)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line with these arguments (default: the process's own) and returns its exit status."""
    parser = ArgumentParser(
        prog="python -m janus_jax.data.translation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", required=True, choices=CORPORA)
    parser.add_argument("--downloads", required=True, help="folder of the original files")
    parser.add_argument("--output", required=True, help="folder to write; finished files are not written again")
    parser.add_argument("--unchecked", action="store_true", help="accept files of other sizes and sums")
    parser.add_argument("--processes", type=int, default=0, help="that cut text into words; 0: one per core")
    args = parser.parse_args(argv)
    if args.processes < 0:
        parser.error(f"--processes={args.processes}: at least 0 is needed")

    def body() -> None:
        output = Path(args.output)
        if (output / FINISHED).is_file():
            try:
                made = json.loads((output / FINISHED).read_text(encoding="utf-8"))["corpus"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{output / FINISHED}: not of this command; name another folder with --output"
                ) from error
            if made != args.corpus:
                raise DataError(f"--output={output}: holds {made} already; name another folder")
            print(f"{output}: finished already")
            return
        files.check_directory(output)
        processes = args.processes or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        about = make(args.corpus, Path(args.downloads), output, checked=not args.unchecked, processes=processes)
        for split, count in about["pairs"].items():
            published = about["published"].get(split)
            note = "" if published in (None, count) or args.unchecked else f" (the reference scripts keep {published})"
            print(f"{output}/{split}: {count} pairs{note}")

    return report_mistakes(body)


if __name__ == "__main__":
    sys.exit(main())
