"""From text to a prepared dataset: clean, tokenize, filter by length, write.

Everything is written to a temporary directory beside the final one, which is renamed at the end. So a prepared directory is complete.

Legend: N examples of a split.
"""

import functools
import importlib.metadata
import itertools
import os
import pathlib
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from janus_jax import files, text
from janus_jax.config import Config, DataConfig
from janus_jax.data import clean, identity, prepare_text, shards, sources, store
from janus_jax.data.errors import DataError
from janus_jax.data.report import bucket_table, format_report, length_histogram
from janus_jax.data.tokenizer import Log, check_tokenizer_path, tokenizer_of_lines, tokenizer_of_pairs, tokenizer_path

_CHUNK = 8192  # lines tokenized at once


def prepare(
    config: Config, *, overwrite: bool = False, download: bool = False, processes: int = 1, log: Log = print
) -> dict[str, Any]:
    """Writes `config.data.prepared`, the directory that training reads; keeps it if it already holds the same.

    Args:
      config: text and data settings.
      overwrite: replace a directory that was prepared with other settings or from other files.
      download: let TFDS fetch a dataset that is not on this machine.
      processes: number of processes that tokenize plain text.
      log: receives lines for the user.

    Returns:
      The report, which the directory holds as report.json.

    Raises:
      DataError: data is missing or unusable, or the directory holds something else.
      TokenizerError: the tokenizer cannot be trained or read.
    """
    directory = pathlib.Path(config.data.prepared).resolve()  # a link stays, and what it points to is written
    if directory == pathlib.Path.cwd():
        raise DataError("config.data.prepared: the current folder cannot be replaced; name a folder in it")
    if config.data.source != "text" and config.data.source_lang == config.data.target_lang:
        raise DataError(
            f"config.data.target_lang: {config.data.target_lang!r} is data.source_lang too, and files are named by them; give "
            "the two sides different names, for example src and tgt"
        )
    check_tokenizer_path(config)
    splits = sources.open_splits(config.data, download=download)
    inputs = _inputs(config, splits)
    if directory.exists() and (report := _existing(directory, config, splits, inputs, overwrite)):
        log(f"{directory} is already prepared with these settings ({report['fingerprint']}); nothing to do")
        return report
    if os.path.ismount(directory):
        raise DataError(
            f"config.data.prepared: {directory} is a mount point, which is not replaced; name a folder in it"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob(f".{directory.name}.*.partial"):
        # Another preparation may be writing it, so it is not removed.
        log(f"{leftover} belongs to an interrupted or running preparation; remove it if none is running")
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        started = time.monotonic()
        write = functools.partial(_write_text, processes=processes) if config.data.source == "text" else _write_pairs
        report = _about(config, splits, inputs) | write(partial, config, splits, log)
        report["seconds"] = round(time.monotonic() - started, 1)
        store.finish(partial, config, report)
        # Another preparation may have come first.
        if directory.exists() and (finished := _existing(directory, config, splits, inputs, overwrite)):
            log(f"{directory} was prepared with these settings in the meantime; nothing to do")
            return finished
        _replace(directory, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log(format_report(report))
    log(f"wrote {directory}")
    return report


def _inputs(config: Config, splits: dict[str, sources.SplitSource]) -> dict[str, int]:
    """The files that are read, with their sizes, so that a changed file is noticed."""
    inputs = {name: size for source in splits.values() for name, size in source.inputs.items()}
    if path := tokenizer_path(config):
        model = pathlib.Path(path)
        inputs[str(model)] = model.stat().st_size if model.is_file() else 0
    return inputs


def _about(config: Config, splits: dict[str, sources.SplitSource], inputs: dict[str, int]) -> dict[str, Any]:
    """The first entries of every report."""
    libraries = ("sentencepiece", "tokenizers", "tensorflow-datasets", "babel")
    return {
        "format": store.FORMAT,
        "fingerprint": identity.fingerprint(config, store.FORMAT),
        "settings": identity.settings(config),
        "inputs": inputs,
        "content": {split: content for split, source in splits.items() if (content := source.content())},
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }


def _existing(
    directory: pathlib.Path,
    config: Config,
    splits: dict[str, sources.SplitSource],
    inputs: dict[str, int],
    overwrite: bool,
) -> dict[str, Any] | None:
    """The report of an existing directory if it holds what would be written now; None if it may be replaced.

    Raises:
      DataError: the directory holds something else.
    """
    fix = f"remove {directory}, choose another data.prepared, or add --overwrite"
    if directory.is_dir() and not any(directory.iterdir()):
        return None
    if not (directory / "report.json").is_file():
        # No flag replaces it: it is not ours.
        raise DataError(
            f"config.data.prepared: {directory} exists and is not a prepared dataset; choose another directory"
        )
    try:
        report = store.read_report(directory)
        changes = identity.preparation_changes(report, config, splits, inputs, directory)
    except DataError as error:
        changes = str(error)
    if not changes:
        try:
            store.Prepared.open(directory)  # finds damage
        except DataError as error:
            if not overwrite:
                raise DataError(f"{error} (--overwrite does so)") from error
            return None
        return report
    if overwrite:
        return None
    raise DataError(f"config.data.prepared: {directory} holds other data ({changes}); {fix}")


def _replace(directory: pathlib.Path, partial: pathlib.Path) -> None:
    """Renames `partial` to `directory`. An old directory is renamed first and removed last."""
    aside = None
    if directory.exists():
        aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".old", dir=directory.parent))
        directory.rename(aside / directory.name)
    partial.rename(directory)
    files.sync_directory(directory.parent)
    if aside:
        shutil.rmtree(aside, ignore_errors=True)


def _write_pairs(
    partial: pathlib.Path, config: Config, splits: dict[str, sources.SplitSource], log: Log
) -> dict[str, Any]:
    """Fills `partial` with sentence pairs; returns the rest of the report."""
    work = partial / "work"
    work.mkdir()
    stats = {split: clean.FilterStats() for split in splits}
    counts = {}
    for split, source in splits.items():
        with open(work / f"{split}.tsv", "w", encoding="utf-8", newline="\n") as file:
            counts[split] = clean.write_clean(source, stats[split], file)
        log(f"{split}: read {stats[split].read} pairs, {counts[split]} of them clean")
        if not counts[split]:
            raise _empty(split, stats[split], config.data)
    tokenizer = tokenizer_of_pairs(work / "train.tsv", counts["train"], config, log)
    lengths: dict[str, np.ndarray] = {}
    unknown = 0
    for split in splits:
        encoded = _encode(split, work, partial, splits[split], stats[split], tokenizer, config)
        if not stats[split].kept:
            raise _empty(split, stats[split], config.data)
        unknown += encoded.pop("unknown")
        lengths |= encoded
    # Before the files are written, so that a batch plan that fails does so early.
    tables = {
        split: bucket_table(lengths[f"{split}_source"], lengths[f"{split}_target"], config)
        for split in splits
        if split != "test"  # which training does not read
    }
    examples = store.write_examples(
        partial,
        {split: _examples(split, work, lengths) for split in splits},
        f"{config.data.source_lang}-{config.data.target_lang} token ids, prepared by janus_jax",
    )
    shutil.rmtree(work)
    return _finish(partial, tokenizer, lengths, unknown) | {
        "splits": {split: _split_report(split, stats[split], lengths) for split in splits},
        "buckets": tables["train"],
        "examples": examples,
    }


def _write_text(
    partial: pathlib.Path, config: Config, splits: dict[str, sources.SplitSource], log: Log, processes: int
) -> dict[str, Any]:
    """Fills `partial` with blocks of text; returns the rest of the report."""
    longest = np.array([config.data.max_target_length])
    bucket_table(longest, longest, config)  # before the text is read, so that a batch plan that fails does so early
    if "valid" in splits and not config.data.valid:
        prepare_text.check_hold_out(splits["valid"], config.data.hold_out)  # before a tokenizer is trained
    lines = [] if tokenizer_path(config) else prepare_text.sample_lines(splits["train"], config.text.train_lines)
    tokenizer = tokenizer_of_lines(lines, config, log)
    stats = {split: clean.FilterStats() for split in splits}
    lengths, unknown, examples = prepare_text.write_blocks(partial, config, splits, stats, tokenizer, processes)
    sizes = lengths["train_target"]
    return _finish(partial, tokenizer, lengths, unknown) | {
        "splits": {split: prepare_text.split_report(split, stats[split], lengths) for split in splits},
        "buckets": bucket_table(sizes, sizes, config),
        "examples": examples,
    }


def _finish(
    partial: pathlib.Path, tokenizer: text.Tokenizer, lengths: dict[str, np.ndarray], unknown: int
) -> dict[str, Any]:
    np.savez(partial / "lengths.npz", **lengths)
    (partial / "tokenizer.model").write_bytes(tokenizer.to_bytes())
    return {"tokenizer": {"vocab_size": tokenizer.vocab_size, "unknown_tokens": unknown}}


def _empty(split: str, stats: clean.FilterStats, data: DataConfig) -> DataError:
    reasons = ", ".join(f"{entry['count']} {reason}" for reason, entry in stats.dropped.items()) or "nothing to read"
    first = next((entry["examples"][0]["where"] for entry in stats.dropped.values()), "")
    usual = max(stats.dropped, key=lambda reason: stats.dropped[reason]["count"], default="")
    fix = clean.MALFORMED.get(
        usual, "check the files, and data.max_source_length, max_target_length and max_length_ratio"
    )
    if data.source == "demo" and not stats.read:
        fix = f"raise data.demo_sizes {data.demo_sizes}" + (f', or set data.{split}=""' if split != "train" else "")
    if split == "valid" and not data.valid:
        fix += f"; or lower config.data.hold_out ({data.hold_out})"
    return DataError(
        f"config.data.{split}: no pair of the {split} split is left of {stats.read} "
        f"({reasons}{'; see ' + first if first else ''}); {fix}"
    )


def _encode(
    split: str,
    work: pathlib.Path,
    partial: pathlib.Path,
    source: sources.SplitSource,
    stats: clean.FilterStats,
    tokenizer: text.Tokenizer,
    config: Config,
) -> dict[str, Any]:
    """Tokenizes a split into flat files of ids; keeps the text of valid and test.

    Returns:
      "{split}_source" and "{split}_target": lengths [N] int32; "unknown": the number of unk tokens.
    """
    data, special = config.data, tokenizer.specials
    sides = ("source", "target")
    lengths = {side: array("i") for side in sides}
    unknown = 0
    texts: list[tuple[str, str]] = []
    with (
        open(work / f"{split}.tsv", encoding="utf-8", newline="\n") as file,
        open(work / f"{split}.source", "wb") as source_file,
        open(work / f"{split}.target", "wb") as target_file,
    ):
        pairs = clean.read_clean(file)
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            encoded = [tokenizer.encode_batch([pair[i] for pair in chunk]) for i in (1, 2)]
            for (number, *pair), *ids in zip(chunk, *encoded, strict=True):
                if data.too_long == "cut":
                    for side, row in zip(sides, ids, strict=True):
                        longest = getattr(data, f"max_{side}_length") - 2
                        stats.cut[side] = stats.cut.get(side, 0) + (len(row) > longest)
                        del row[longest:]
                sizes = [len(side) + 2 for side in ids]
                reason = clean.length_reason(
                    *sizes, data.max_source_length, data.max_target_length, data.max_length_ratio
                )
                if reason:
                    stats.drop(reason, source.where(number), "\t".join(pair))
                    continue
                stats.kept += 1
                for side, size, row, output in zip(sides, sizes, ids, (source_file, target_file), strict=True):
                    lengths[side].append(size)
                    unknown += row.count(special.unk)
                    output.write(np.array([special.bos, *row, special.eos], np.int32).tobytes())
                if split != "train":
                    texts.append(pair)
    if texts:
        (partial / "text").mkdir(exist_ok=True)
        for i, lang in enumerate((data.source_lang, data.target_lang)):
            lines = "".join(f"{pair[i]}\n" for pair in texts)
            (partial / "text" / f"{split}.{lang}").write_text(lines, encoding="utf-8", newline="\n")
    return {f"{split}_{side}": np.array(lengths[side], np.int32) for side in sides} | {"unknown": unknown}


def _examples(split: str, work: pathlib.Path, lengths: dict[str, np.ndarray]) -> Iterator[shards.Example]:
    """The examples of a split, read from the flat files."""
    sides = {}
    for side in store.PAIRS:
        ids = np.memmap(work / f"{split}.{side}", np.int32, "r")
        ends = np.cumsum(lengths[f"{split}_{side}"], dtype=np.int64).tolist()
        sides[side] = (ids, [0, *ends])
    for i in range(len(lengths[f"{split}_source"])):
        yield {side: np.asarray(ids[ends[i] : ends[i + 1]]) for side, (ids, ends) in sides.items()}


def _split_report(split: str, stats: clean.FilterStats, lengths: dict[str, np.ndarray]) -> dict[str, Any]:
    sides = {side: lengths[f"{split}_{side}"] for side in ("source", "target")}
    return {
        "read": stats.read,
        "kept": stats.kept,
        "dropped": stats.dropped,
        "cut": stats.cut,
        "tokens": {side: int(values.sum(dtype=np.int64)) for side, values in sides.items()},
        "longest": {side: int(values.max()) for side, values in sides.items()},
        "length_histogram": {side: length_histogram(values) for side, values in sides.items()},
    }
