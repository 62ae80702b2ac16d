"""Where text comes from: parallel files, TSV files, GLGE, TFDS datasets, the built-in corpus, CMUdict; plain text for denoising.

A `SplitSource` can be iterated any number of times. It yields `(number, source, target)`: the number of the pair and the raw
bytes (or str) of its sides; `where(number)` is the place that a user can look up. The target is None for a line that does not
hold two sides. For plain text it yields `(number, document)`.
"""

import bisect
import contextlib
import difflib
import glob
import gzip
import hashlib
import importlib.util
import io
import lzma
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from janus_jax.config import DataConfig
from janus_jax.data import demo, pronunciations
from janus_jax.data.errors import DataError

Pair = tuple[Any, ...]  # number, source, target; number, document
_PIECE = " ##"  # before a piece that goes on with a word, in text that BERT's tokenizer has cut
SPLITS = ("train", "valid", "test")
FILES = ("parallel", "tsv", "glge", "text")  # sources whose splits are files, named by their paths
# The built-in corpus is always the same: `data.seed` seeds order and masks and not the text.
DEMO_SEED = 0
_OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # of the files that `open_file` opens
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SplitSource:
    """One split as a stream of sentence pairs or documents."""

    pairs: Callable[[], Iterator[Pair]]
    where: Callable[[int], str]  # a pair's number -> its place, for messages
    inputs: dict[str, int]  # files that are read, with their size in bytes (0: not a file)

    def __iter__(self) -> Iterator[Pair]:
        return self.pairs()

    def content(self) -> str:
        """The SHA-256 of the files, as they are on disk, in their order; empty if there are none."""
        digest = hashlib.sha256()
        files = [path for path, size in self.inputs.items() if size]
        for path in files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest() if files else ""


def open_splits(config: DataConfig, *, download: bool = False) -> dict[str, SplitSource]:
    """Opens the splits that `config` names and checks that each exists.

    Args:
      config: `source` says what `train`, `valid` and `test` name; an empty name means that there is no such split.
      download: let TFDS fetch a dataset that is not on this machine.

    Returns:
      Sources keyed "train", "valid" and "test".

    Raises:
      DataError: a file, dataset or split is missing, or no train split is named.
    """
    names = {split: getattr(config, split) for split in SPLITS if getattr(config, split)}
    if "train" not in names:
        raise DataError("config.data.train: name the training split; only valid and test may be absent")
    if config.hold_out and config.source not in FILES:
        raise DataError(
            f"config.data.hold_out: {config.hold_out}, but data.source={config.source} has a validation split of its own; set "
            "hold_out=0"
        )
    if names.get("test") == DataConfig().test and config.source in FILES:
        # It was not set. A test split is not needed to train.
        with contextlib.suppress(DataError):
            return SOURCES[config.source](config, names, download)
        del names["test"]
    return SOURCES[config.source](config, names, download)


def find_file(path: str, key: str) -> pathlib.Path:
    """The first of `path`, `path`.gz and `path`.xz that exists.

    Raises:
      DataError: none of them exists.
    """
    for suffix in _OPENERS:
        candidate = pathlib.Path(path + suffix)
        if candidate.is_file():
            return candidate
    without = "" if key.endswith("train") else f', or say {key}="" if there is none'
    raise DataError(
        f"{key}: no file {path!r} (nor with .gz or .xz); check the path, which is relative to {os.getcwd()}{without}"
    )


def open_file(path: pathlib.Path) -> BinaryIO:
    """Opens a plain, .gz or .xz file; reading it may raise `READ_ERRORS`."""
    return _OPENERS[path.suffix if path.suffix in _OPENERS else ""](path, "rb")


def read_lines(path: pathlib.Path) -> Iterator[bytes]:
    r"""Lines of a plain, .gz or .xz file: split at "\n" only, one trailing "\r" and a byte-order mark removed.

    Raises:
      DataError: the file is not what its name says, or ends early.
    """
    number = 0
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield line.removesuffix(b"\n").removesuffix(b"\r")
    except READ_ERRORS as error:
        raise DataError(f"{path}:{number + 1}: cannot read on ({error}); is the file complete?") from error


def _open_files(config: DataConfig, names: dict[str, str], _download: bool) -> dict[str, SplitSource]:
    opener = {"parallel": _open_parallel, "tsv": _open_tsv, "glge": _open_glge}[config.source]
    opened = {split: opener(f"config.data.{split}", name, config) for split, name in names.items()}
    return _hold_out(opened, config.hold_out, iter)


def _open_parallel(key: str, prefix: str, config: DataConfig) -> SplitSource:
    if pathlib.Path(prefix).is_file():
        raise DataError(
            f"{key}: {prefix} is one file. For a file with source TAB target in each line set config.data.source=tsv; "
            f"for two files give the name without its language, {prefix}.{config.source_lang} and {prefix}.{config.target_lang}"
        )
    return _open_two(*(find_file(f"{prefix}.{lang}", key) for lang in (config.source_lang, config.target_lang)))


def _open_two(source: pathlib.Path, target: pathlib.Path) -> SplitSource:
    """Two files, of which line n of one belongs to line n of the other."""

    def pairs() -> Iterator[Pair]:
        lines = read_lines(source), read_lines(target)
        number = 0
        for number, left in enumerate(lines[0], 1):
            right = next(lines[1], None)
            if right is None:
                longer = number + sum(1 for _ in lines[0])
                raise _misaligned(source, longer, target, number - 1)
            yield number, left, right
        if surplus := sum(1 for _ in lines[1]):
            raise _misaligned(source, number, target, number + surplus)

    sizes = {str(path): path.stat().st_size for path in (source, target)}
    return SplitSource(pairs, lambda number: f"{source}:{number}", sizes)


def _misaligned(source: pathlib.Path, source_lines: int, target: pathlib.Path, target_lines: int) -> DataError:
    return DataError(
        f"{source} has {source_lines} lines, {target} has {target_lines}: line n of one must translate line n of the other; "
        "find the missing line (lines end at \\n only)"
    )


def glge_marks(config: DataConfig) -> tuple[str, ...]:
    """What is taken out of sources of GLGE: the mark between sentences of cnndm, and the joint of pieces of words."""
    return (_PIECE, "<S_SEP>") if config.glge_pieces else ("<S_SEP>",)


def _open_glge(key: str, prefix: str, config: DataConfig) -> SplitSource:
    """A split of GLGE: pieces of words are joined, and the marks between sentences of cnndm changed as the benchmark does
    (uncase_tokenize_data.py).
    """
    source = find_file(f"{prefix}.src", key)
    try:
        target = find_file(f"{prefix}.tgt", key)
    except DataError as error:
        raise DataError(
            f'{key}: {prefix}.src is there, {prefix}.tgt is not: GLGE keeps the targets of its test splits; say {key}="", and '
            "decode the .src file"
        ) from error
    two = _open_two(source, target)
    marks = [mark.encode() for mark in glge_marks(config)]

    def pairs() -> Iterator[Pair]:
        for number, left, right in two:
            right = right.replace(b"<S_SEP>", b"[X_SEP]")
            for mark in marks:
                left, right = left.replace(mark, b""), right.replace(mark, b"")
            yield number, left, right

    return SplitSource(pairs, two.where, two.inputs)


def _open_tsv(key: str, name: str, _config: DataConfig) -> SplitSource:
    path = find_file(name, key)

    def pairs() -> Iterator[Pair]:
        for number, line in enumerate(read_lines(path), 1):
            sides = line.split(b"\t")
            yield (number, *sides) if len(sides) == 2 else (number, line, None)

    return SplitSource(pairs, lambda number: f"{path}:{number}", {str(path): path.stat().st_size})


def _open_text(config: DataConfig, names: dict[str, str], _download: bool) -> dict[str, SplitSource]:
    opened = {split: _documents(f"config.data.{split}", pattern) for split, pattern in names.items()}
    return _hold_out(opened, config.hold_out, lambda whole: (pair for pair in whole if pair[1].strip()))


def _hold_out(
    opened: dict[str, SplitSource], every: int, counted: Callable[[SplitSource], Iterator[Pair]]
) -> dict[str, SplitSource]:
    """The splits; where there is no validation split, every n-th one of the `counted` pairs of the train split becomes it."""
    if not every or "valid" in opened:
        return opened
    whole = opened["train"]

    def part(held_out: bool) -> SplitSource:
        def pairs() -> Iterator[Pair]:
            return (pair for i, pair in enumerate(counted(whole), 1) if (i % every == 0) == held_out)

        return SplitSource(pairs, whole.where, whole.inputs)

    # The short split first, so that its errors show before the long one is read.
    return {"valid": part(True), "train": part(False), **{s: o for s, o in opened.items() if s != "train"}}


def _documents(key: str, pattern: str) -> SplitSource:
    """The lines of all files that match, in the order of their names; the numbers continue from file to file."""
    found = [pathlib.Path(path) for path in sorted(glob.glob(pattern))]
    paths = [path for path in found if not path.is_dir()] or [find_file(pattern, key)]
    firsts: list[float] = [math.inf] * len(paths)  # number before each file's first line; not read yet: infinity

    def pairs() -> Iterator[Pair]:
        number = 0
        for i, path in enumerate(paths):
            firsts[i] = number
            for line in read_lines(path):
                number += 1
                yield number, line

    def where(number: int) -> str:
        i = bisect.bisect_left(firsts, number) - 1
        return f"{paths[i]}:{number - int(firsts[i])}"

    return SplitSource(pairs, where, {str(path): path.stat().st_size for path in paths})


def _open_demo(config: DataConfig, names: dict[str, str], _download: bool) -> dict[str, SplitSource]:
    pairs_of = dict(
        zip(
            SPLITS,
            demo.generate(config.source_lang, config.target_lang, config.demo_sizes, DEMO_SEED),
            strict=True,
        )
    )

    def source(split: str) -> SplitSource:
        def pairs() -> Iterator[Pair]:
            return ((number, *pair) for number, pair in enumerate(pairs_of[split], 1))

        return SplitSource(pairs, lambda number: f"demo {split}:{number}", {"demo": 0})

    return {split: source(split) for split in names}


def _open_cmudict(config: DataConfig, names: dict[str, str], _download: bool) -> dict[str, SplitSource]:
    path = pronunciations.dictionary_path()
    pairs_of = pronunciations.pairs(config.cmudict_stress)
    inputs = {str(path): path.stat().st_size}
    return {split: SplitSource(pairs_of[split].__iter__, lambda number: f"{path}:{number}", inputs) for split in names}


def _open_tfds(config: DataConfig, names: dict[str, str], download: bool) -> dict[str, SplitSource]:
    builder = _tfds_builder(config, download)
    features = builder.info.features
    for lang in (config.source_lang, config.target_lang):
        if lang not in features:
            raise DataError(
                f"config.data.source_lang, target_lang: TFDS dataset {config.tfds_name!r} has no {lang!r}; it holds {', '.join(sorted(features))}"
            )

    def source(split: str, name: str) -> SplitSource:
        if name.split("[")[0] not in builder.info.splits:
            raise DataError(
                f"config.data.{split}: TFDS dataset {config.tfds_name!r} has no split {name!r}; it has {', '.join(sorted(builder.info.splits))}"
            )
        try:
            data = builder.as_data_source(split=name)
        except Exception as error:  # TFDS raises several classes; the commonest cause is another file format
            raise DataError(
                f"config.data.tfds_name: cannot read {config.tfds_name!r} in {builder.data_dir} without TensorFlow ({error}); "
                "prepare it with file_format='array_record'"
            ) from error

        def pairs() -> Iterator[Pair]:
            for start in range(0, len(data), 1024):
                rows = data.__getitems__(list(range(start, min(start + 1024, len(data)))))
                for number, row in enumerate(rows, start + 1):
                    yield number, row[config.source_lang], row[config.target_lang]

        return SplitSource(
            pairs, lambda number: f"{config.tfds_name} {name}[{number - 1}]", {f"tfds {builder.info.full_name}": 0}
        )

    return {split: source(split, name) for split, name in names.items()}


def _tfds_builder(config: DataConfig, download: bool) -> Any:
    """The named TFDS builder with its data on disk.

    Raises:
      DataError: unknown to TFDS, in need of TensorFlow, or not on disk and `download` is not set.
    """
    import tensorflow_datasets as tfds  # imported here: it takes half a second

    name, where = config.tfds_name, config.tfds_data_dir or None
    try:
        builder = tfds.builder(name, data_dir=where, try_gcs=False)
    except Exception as error:  # TFDS raises ImportError, DatasetNotFoundError, ValueError, AssertionError...
        unknown = type(error).__name__ == "DatasetNotFoundError"
        if importlib.util.find_spec("tensorflow") is None and (
            re.match(r"wmt\w*_translate(/|:|$)", name)
            or (not unknown and ("tensorflow" in str(error).lower() or isinstance(error, ImportError)))
        ):
            raise DataError(
                f"config.data.tfds_name: TFDS makes {name!r} with TensorFlow only; run `pip install tensorflow`, or take parallel files"
            ) from error
        if unknown:
            # The message of TFDS lists all names, one a line.
            names = re.findall(r"^\s*- (\S+)$", str(error), re.MULTILINE)
            near = difflib.get_close_matches(name.split("/")[0], [*names, "wmt14_translate", "wmt16_translate"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "https://www.tensorflow.org/datasets/catalog lists all"
            raise DataError(
                f"config.data.tfds_name: TFDS knows no dataset {name!r}, nor is it in {where or '~/tensorflow_datasets'}; {hint}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"config.data.tfds_name: TFDS cannot open {name!r} ({reason}); give 'name/config:version' and, if it lies outside "
            "~/tensorflow_datasets, data.tfds_data_dir (some datasets are found only after `pip install tensorflow`)"
        ) from error
    if not builder.info.splits:
        if not download:
            raise DataError(
                f"config.data.tfds_name: {name!r} is not in {builder.data_dir}; add --download to let TFDS fetch it, or set data.tfds_data_dir"
            )
        builder = tfds.builder(name, data_dir=where, try_gcs=False, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    return builder


SOURCES: dict[str, Callable[[DataConfig, dict[str, str], bool], dict[str, SplitSource]]] = {
    "parallel": _open_files,
    "tsv": _open_files,
    "glge": _open_files,
    "tfds": _open_tfds,
    "demo": _open_demo,
    "cmudict": _open_cmudict,
    "text": _open_text,
}
