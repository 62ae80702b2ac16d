"""Sequence-level knowledge distillation: a model translates the sources of a prepared training set; its outputs are the new targets."""

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from janus_jax import files
from janus_jax.data import DataError, Prepared, Readers, check_one_target, retarget
from janus_jax.decode.generator import Generator
from janus_jax.decode.io import CHUNK, Item, job_hash, read_lines, write_resumable


def distill(
    generator: Generator,
    prepared: str | Path,
    output: str | Path,
    *,
    checkpoint: str,
    progress: Callable[[int], Any] | None = None,
    chunk: int = CHUNK,
    readers: Readers = "all",
    **settings: Any,
) -> dict[str, Any]:
    """Writes the prepared dataset `output`: `prepared` with the model's outputs as training targets of some or all rows.

    A killed run resumes: finished translations are kept beside `output`. A pair whose output is empty keeps its original
    target, since no row can be trained on an empty one; the report counts these under distilled.empty_outputs.

    Args:
      generator: the model; its tokenizer must be that of the dataset.
      prepared: directory of the dataset to translate.
      output: directory to write, which must not exist.
      checkpoint: path of the model, for the report.
      progress: called with the number of sentences just decoded.
      chunk: sentences between two states from which a killed run resumes.
      readers: the rows that read the outputs, see `data.retarget`.
      **settings: of `Generator.generate`.

    Returns:
      The new dataset's report.

    Raises:
      DataError: the dataset cannot be used, or `output` exists or cannot be made.
    """
    data, output = Prepared.open(prepared), Path(output)
    if os.path.lexists(output):
        raise DataError(f"{output} exists; remove it or name another directory")
    try:
        files.check_directory(output.parent)
    except OSError as error:
        raise DataError(f"{output}: {error.strerror}; name a directory in a writable one") from error
    if generator.tokenizer is None or generator.tokenizer.to_bytes() != data.tokenizer_bytes:
        raise DataError(
            f"{data.directory} was prepared with another tokenizer than the checkpoint's; distil with a model trained on this dataset"
        )
    settings["nbest"] = 1  # a pair has one target; a checkpoint's own settings may ask for more
    decode = generator.settings(settings)
    if data.config.data.source == "text":
        raise DataError(f"{data.directory} holds blocks of text for denoising; only sentence pairs can be distilled")
    check_one_target(data)
    generator = copy.copy(generator)
    generator.max_target_length = min(generator.max_target_length, data.config.data.max_target_length)
    sources = [row["source"].tolist() for row in data.split("train").examples()]
    generator.check_ids(sources, **settings)
    items = [Item(" ".join(map(str, ids))) for ids in sources]
    output.parent.mkdir(parents=True, exist_ok=True)
    translated = output.with_name(f".{output.name}.targets")

    def records(start: int, part: Sequence[Item]) -> list[str]:
        sources = [list(map(int, item.source.split())) for item in part]
        outputs = generator.generate_ids(sources, first_line=start, progress=progress, **settings)
        return [" ".join(map(str, one.tokens)) for one in outputs]

    origin = {"checkpoint": checkpoint, "decode": dataclasses.asdict(decode)}
    signature = [origin["decode"], generator.fingerprint()]  # without the path: a checkpoint may be moved
    # Says which finished translations are there, until the new dataset is.
    finished, job = translated.with_name(f"{translated.name}.finished"), job_hash(items, signature)
    if not (translated.is_file() and finished.is_file() and finished.read_text() == job):
        finished.unlink(missing_ok=True)
        write_resumable(items, translated, records, signature=signature, chunk=chunk, skipped=progress)
        files.write_bytes(finished, job.encode())
    targets = [list(map(int, line.split())) for line in read_lines(translated)]
    empty = 0
    for number, row in enumerate(data.split("train").examples()):
        if not targets[number]:
            targets[number] = row["target"][1:-1].tolist()
            empty += 1
    if empty == len(targets):
        raise DataError(f"all {empty} outputs are empty: is {checkpoint} trained? {translated} holds them; remove it")
    report = retarget(data, output, targets, {**origin, "empty_outputs": empty}, readers)
    translated.unlink()
    finished.unlink()
    return report
