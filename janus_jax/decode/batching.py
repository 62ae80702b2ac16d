"""Sentences into padded batches of few shapes, so that little is compiled and little is padding; and results back out of them.

Legend: B sentences of a batch, S padded source length.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from janus_jax.decode.search.candidates import Trace
from janus_jax.decode.search.verify import Passes
from janus_jax.decode.types import DecodeResult, SentenceResult
from janus_jax.types import Specials

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sentences:
    """Sentences to decode as token ids; prefixes, targets and fillings are absent, or there is one for each source."""

    sources: list[list[int]]  # bos ... eos; [] for an empty line
    prefixes: list[list[int]] | None = None  # tokens that an output has to begin with
    starts: list[list[int]] | None = None  # targets to complete, bos ... eos with masks
    fillings: list[list[int]] | None = None  # tokens of the gaps of a target, to be scored
    first_line: int = 0  # line number of the first

    def length(self, index: int) -> int:
        """The length by which a sentence is put into a batch."""
        return max(len(self.sources[index]), len(self.starts[index]) if self.starts else 0)

    def arrays(self, indices: list[int], rows: int, length: int, pad: int) -> dict[str, Any]:
        """The arrays of a `DecodeRequest` for these sentences, filled up with padding to `rows` sentences."""
        return {
            "source": pad_sources([self.sources[i] for i in indices], rows, length, pad),
            "lines": np.pad(np.asarray(indices, np.int32) + self.first_line, (0, rows - len(indices))),
            "prefix": _padded(self.prefixes, indices, rows, pad),
            "start": _padded(self.starts, indices, rows, pad),
            "filling": _padded(self.fillings, indices, rows, pad),
        }


def bare(ids: Sequence[int], specials: Specials) -> list[int]:
    """Token ids without bos, eos and padding."""
    return [i for i in map(int, ids) if i not in (specials.bos, specials.eos, specials.pad)]


def framed(
    sentences: Sequence[Sequence[int]], longest: int, name: str, specials: Specials, first_line: int = 0
) -> list[list[int]]:
    """Token ids bos ... eos, cut to `longest` with one warning; [] for an empty sentence."""
    cut = cut_to(sentences, longest - 2, name, specials, first_line)
    if name == "sources" and specials.unk != specials.mask:
        unknown = [number for number, sentence in enumerate(cut, first_line + 1) if specials.unk in sentence]
        if unknown:
            log.warning(
                "%d of %d sources have text that the vocabulary lacks, read as unknown tokens: line %s", len(unknown), len(cut),
                _first_ten(unknown),
            )  # fmt: skip
    return [[specials.bos, *sentence, specials.eos] if sentence else [] for sentence in cut]


def _first_ten(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def cut_to(
    sentences: Sequence[Sequence[int]], most_tokens: int, name: str, specials: Specials, first_line: int = 0
) -> list[list[int]]:
    """Token ids without bos, eos and padding, cut to `most_tokens` with one warning that names the lines."""
    ids = [bare(sentence, specials) for sentence in sentences]
    long = [number for number, sentence in enumerate(ids, first_line + 1) if len(sentence) > most_tokens]
    if long:
        log.warning(
            "%d of %d %s are longer than %d tokens and were cut: line %s", len(long), len(ids), name, most_tokens,
            _first_ten(long),
        )  # fmt: skip
    return [sentence[:most_tokens] for sentence in ids]


def bucket(length: int, *, at_least: int = 16, halves: bool = False) -> int:
    """The padded length of `length` tokens: a power of two, or with `halves` also 1.5 times one."""
    size = at_least
    while size < length:
        if halves and size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def full_rows(length: int, batch_tokens: int, hypotheses: int, ways: int = 1) -> int:
    """Sentences of a full batch: for each of `ways` devices a multiple of 8, or below 8 a power of two; at least one."""
    rows = max(batch_tokens // (length * hypotheses * ways), 1)
    return ways * (rows // 8 * 8 if rows >= 8 else 1 << (rows.bit_length() - 1))


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, hypotheses: int, ways: int = 1
) -> list[tuple[int, int, list[int]]]:
    """Groups sentences by length.

    Sentences that do not fill a batch of their bucket move up into the next bucket, if there is one: so there is one
    partial batch, not one for each bucket.

    Args:
      lengths: tokens of each sentence, bos and eos counted.
      batch_tokens: sentences * hypotheses * padded length of a batch stay within it (one sentence a device always fits).
      hypotheses: hypotheses that the search keeps for a sentence.
      ways: devices that share a batch evenly.

    Returns:
      (padded length S, rows B, indices of the sentences) of each batch; B is at least the number of indices.
    """
    by_bucket: dict[int, list[int]] = {}
    for index in np.argsort(np.asarray(lengths, np.int64), kind="stable").tolist():
        by_bucket.setdefault(bucket(lengths[index]), []).append(index)
    plan = []
    sizes = sorted(by_bucket)
    for size in sizes:
        rows = full_rows(size, batch_tokens, hypotheses, ways)
        rest = by_bucket[size]
        while len(rest) >= rows:
            plan.append((size, rows, rest[:rows]))
            rest = rest[rows:]
        if rest and size * 2 in by_bucket:
            by_bucket[size * 2] = rest + by_bucket[size * 2]
        elif rest:
            rows_per_device = 1 << (-(-len(rest) // ways) - 1).bit_length()
            plan.append((size, min(ways * rows_per_device, rows), rest))
    return plan


def pad_sources(sources: Sequence[Sequence[int]], rows: int, length: int, pad: int) -> np.ndarray:
    """Token ids as an int32 array [rows, length], padded on the right and below."""
    out = np.full((rows, length), pad, np.int32)
    for row, ids in enumerate(sources):
        out[row, : len(ids)] = ids
    return out


def _padded(values: list[list[int]] | None, indices: list[int], rows: int, pad: int) -> np.ndarray | None:
    """The values at `indices` as an array [rows, length], of few possible lengths; None if there are no values."""
    if values is None:
        return None
    longest = max(len(values[i]) for i in indices)
    return pad_sources([values[i] for i in indices], rows, bucket(longest, at_least=8, halves=True), pad)


def sentence_results(result: DecodeResult, count: int, specials: Specials) -> list[SentenceResult]:
    """The results of the first `count` sentences of a batch; waits for the device."""
    best = result.hypotheses
    tokens, lengths, scores, token_scores = jax.device_get((best.tokens, best.lengths, best.scores, best.token_scores))
    statistics, trace = jax.device_get((result.statistics, result.trace))
    clean = without_repeats if result.merge_repeats else list
    results = []
    for row in range(count):
        ranked = []
        for n, length in enumerate(lengths[row].tolist()):
            if length > 0:
                # Every hypothesis ends in eos, which callers do not need.
                known = result.has_token_scores and not result.merge_repeats
                of_tokens = token_scores[row, n, :length].tolist() if known else []
                ranked.append((clean(tokens[row, n, : length - 1].tolist()), float(scores[row, n]), of_tokens))
        passes = []
        if isinstance(trace, Passes):
            passes = _drafts_of(trace, row, tokens[row, 0])
        elif trace:
            passes = _passes_of(trace, row, specials)
        counts = {name: int(values[row]) for name, values in statistics.items()}
        results.append(SentenceResult(ranked, counts, passes))
    return results


def without_repeats(tokens: list[int]) -> list[int]:
    """The tokens without those that equal the one before them."""
    return [token for i, token in enumerate(tokens) if not i or token != tokens[i - 1]]


def _drafts_of(trace: Passes, row: int, tokens: np.ndarray) -> list[dict[str, Any]]:
    """The tokens that each pass verified and emitted, until the sentence was finished."""
    passes, start = [], 0
    for drafted, emitted in zip(trace.drafted[row], trace.emitted[row].tolist(), strict=True):
        if emitted:
            record = {"drafted": drafted[drafted >= 0].tolist(), "tokens": tokens[start : start + emitted].tolist()}
            passes.append({**record, "accepted": emitted - 1})
            start += emitted
    return passes


def _passes_of(trace: Trace, row: int, specials: Specials) -> list[dict[str, list]]:
    """The tokens, scores and masked slots of each pass, without bos, last eos and padding; without passes after an early stop."""
    passes = []
    for tokens, scores, remasked in zip(
        trace.tokens[:, row], trace.scores[:, row], trace.remasked[:, row], strict=True
    ):
        if tokens[0] == specials.bos and tokens.any():
            inner = slice(1, int(np.flatnonzero(tokens != specials.pad)[-1]))  # released rules may emit pads inside
            passes.append(
                {
                    "tokens": tokens[inner].tolist(),
                    "scores": [round(float(score), 4) for score in scores[inner]],
                    "remasked": remasked[inner].tolist(),
                }
            )
    return passes
