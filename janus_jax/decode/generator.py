"""A model and sentences in, sentences out: tokenizing, batching, searching, putting back in order.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, T target slots, K length candidates.
"""

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from janus_jax import checkpoint, config, text
from janus_jax.config import DecodeConfig
from janus_jax.decode import batches
from janus_jax.decode.modes import MODES, TRAINED_MODES
from janus_jax.decode.output import Output, passes_of, without_repeats
from janus_jax.decode.request import Found, Request, rows_per_sentence
from janus_jax.model import Janus
from janus_jax.text import Tokenizer
from janus_jax.types import Params

log = logging.getLogger(__name__)

GAP = "<mask>"  # in text to complete: a missing token


class Generator:
    """Decodes sentences with one set of weights, autoregressively or not.

    Example:
      generator = Generator.from_checkpoint("runs/demo/checkpoints")
      for output in generator.generate(["ein Satz"], mode="nar", passes=4):
          print(output.text)
    """

    def __init__(
        self,
        net: Janus,
        params: Params,
        tokenizer: Tokenizer | None,
        decode_config: DecodeConfig | None = None,
        *,
        max_source_length: int = 256,
        max_target_length: int = 256,
        trained: tuple[config.Mode, ...] | None = None,
    ):
        """Args:
        net: the model.
        params: its parameters; they may be sharded over a mesh.
        tokenizer: of both languages; None if only `generate_ids` is used.
        decode_config: settings used where a call gives none.
        max_source_length: tokens, bos and eos counted, to which a longer source is cut.
        max_target_length: tokens, bos and eos counted, of the longest output.
        trained: modes whose rows were trained, for a warning; None: all.
        """
        self.trained = tuple(MODES) if trained is None else trained
        self.net, self.params, self.tokenizer = net, params, tokenizer
        self.decode_config = decode_config or DecodeConfig()
        self.max_source_length = max_source_length
        self.max_target_length = min(max_target_length, net.config.max_positions)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> "Generator":
        """The generator of a training run or an imported model.

        Args:
          path: a checkpoint's step directory, or the directory that holds such (the latest is taken).

        Raises:
          FileNotFoundError, ValueError: as `checkpoint.load`.
        """
        loaded = checkpoint.load(path)
        tokenizer = text.load(loaded.tokenizer)
        trained, decode = TRAINED_MODES[loaded.config.objective.name], loaded.config.decode
        if decode.mode not in trained:
            decode = dataclasses.replace(decode, mode=trained[0])
        architecture = loaded.config.model
        if not architecture.vocab_size:
            architecture = dataclasses.replace(architecture, vocab_size=tokenizer.vocab_size)
        return cls(
            Janus(architecture, tokenizer.specials),
            loaded.params,
            tokenizer,
            decode,
            max_source_length=loaded.config.data.max_source_length,
            max_target_length=loaded.config.data.max_target_length,
            trained=trained,
        )

    def generate(
        self,
        lines: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        trace: bool = False,
        first_line: int = 0,
        progress: Callable[[int], Any] | None = None,
        **settings: Any,
    ) -> list[Output]:
        """Decodes lines; as many outputs as lines, in their order, whatever the lines hold.

        An empty line gives an empty output. Longer lines than `max_source_length` are cut, with one warning.

        Args:
          lines: source text.
          prefixes: text that each output has to begin with (modes ar).
          targets: text to complete, a `<mask>` for each token that is missing (mode nar).
          trace: also keep what each pass did (mode nar).
          first_line: number of the first line, where these are a part of something larger: each line draws its own samples.
          progress: called with the number of sentences just done.
          **settings: any field of `DecodeConfig` (mode, beam, lenpen, passes, length_beam, ...), over the generator's own.

        Raises:
          ConfigError: an unknown or impossible setting.
          ValueError: no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("this generator has no tokenizer; give it one, or call generate_ids with token ids")
        return self.generate_ids(
            self.tokenizer.encode_batch(list(lines)),
            prefixes=None if prefixes is None else self.tokenizer.encode_batch(list(prefixes)),
            targets=None if targets is None else [self._with_gaps(target) for target in targets],
            trace=trace,
            first_line=first_line,
            progress=progress,
            **settings,
        )

    def generate_ids(
        self,
        sources: Sequence[Sequence[int]],
        *,
        prefixes: Sequence[Sequence[int]] | None = None,
        targets: Sequence[Sequence[int]] | None = None,
        trace: bool = False,
        first_line: int = 0,
        progress: Callable[[int], Any] | None = None,
        **settings: Any,
    ) -> list[Output]:
        """`generate` for what is tokenised already; bos, eos and padding around it may be there or not."""
        decode = self.settings(settings)
        if decode.mode not in self.trained:
            log.warning("mode %s: this model was trained for %s alone", decode.mode, " and ".join(self.trained))
        self._check(decode, len(sources), prefixes, targets)
        if trace and decode.mode != "nar":
            raise ValueError(f"trace: mode {decode.mode} has no passes to look at; use mode=nar")
        framed = self._framed(sources, self.max_source_length, "sources")
        work = _Work(
            framed,
            None if prefixes is None else [self._bare(prefix)[: self.max_target_length - 2] for prefix in prefixes],
            None if targets is None else self._framed(targets, self.max_target_length, "targets"),
            trace,
            first_line,
        )
        outputs = [Output("", 0.0, []) for _ in framed]
        if progress:
            progress(sum(not source for source in framed))
        for indices, rows in self._search(work, [i for i, source in enumerate(framed) if source], decode):
            for index, row in zip(indices, rows, strict=True):
                outputs[index] = self._output(row, decode)
            if progress:
                progress(len(indices))
        return outputs

    def _output(self, row: "_Row", decode: DecodeConfig) -> Output:
        ranked = [(without_repeats(tokens) if decode.merge_repeats else tokens, score) for tokens, score in row.ranked]
        texts = self.tokenizer.decode_batch([tokens for tokens, _ in ranked]) if self.tokenizer else [""] * len(ranked)
        made = [Output(line, score, tokens) for line, (tokens, score) in zip(texts, ranked, strict=True)]
        if not made:
            return Output("", 0.0, [], row.statistics)
        trace = tuple({**one, "tokens": self._pieces(one["tokens"])} for one in row.trace)
        return dataclasses.replace(made[0], statistics=row.statistics, others=tuple(made[1:]), trace=trace)

    def _pieces(self, ids: list[int]) -> list[str]:
        return self.tokenizer.pieces(ids) if self.tokenizer else [str(token) for token in ids]

    def _check(self, decode: DecodeConfig, count: int, prefixes: Any, targets: Any) -> None:
        """Raises what is wrong with a call."""
        for name, given, mode in (("prefixes", prefixes, "ar"), ("targets", targets, "nar")):
            if given is None:
                continue
            if len(given) != count:
                raise ValueError(f"{name}: {len(given)} given for {count} lines; give one a line")
            if decode.mode != mode:
                raise ValueError(f"{name}: mode {decode.mode} takes none; use mode={mode}")

    def _bare(self, ids: Sequence[int]) -> list[int]:
        special = self.net.specials
        return [i for i in map(int, ids) if i not in (special.bos, special.eos, special.pad)]

    def _framed(self, sentences: Sequence[Sequence[int]], longest: int, what: str) -> list[list[int]]:
        """bos ... eos, cut to `longest` with one warning; [] for an empty one."""
        ids = [self._bare(sentence) for sentence in sentences]
        room = longest - 2
        long = [number for number, sentence in enumerate(ids, 1) if len(sentence) > room]
        if long:
            some = ", ".join(map(str, long[:10])) + (", ..." if len(long) > 10 else "")
            log.warning(
                "%d of %d %s are longer than %d tokens and were cut: line %s", len(long), len(ids), what, room, some
            )
        special = self.net.specials
        return [[special.bos, *sentence[:room], special.eos] if sentence else [] for sentence in ids]

    def _with_gaps(self, target: str) -> list[int]:
        """Token ids of text in which `<mask>` stands for a missing token."""
        ids: list[int] = []
        for number, piece in enumerate(target.split(GAP)):
            ids += ([self.net.specials.mask] if number else []) + (
                self.tokenizer.encode(piece) if piece.strip() else []
            )
        return ids

    def settings(self, changes: dict[str, Any]) -> DecodeConfig:
        """The generator's settings with these changes (None: no change).

        Raises:
          ConfigError: an unknown or impossible setting.
        """
        values = {**dataclasses.asdict(self.decode_config), **{k: v for k, v in changes.items() if v is not None}}
        return config.resolve({"decode": values}).decode

    def _search(
        self, work: "_Work", indices: list[int], decode: DecodeConfig
    ) -> Iterator[tuple[list[int], list["_Row"]]]:
        """Batches in whatever order: (indices, what was found). One batch runs while the one before is read."""
        pad = self.net.specials.pad
        plan = batches.plan_batches([work.length(i) for i in indices], decode.batch_tokens, rows_per_sentence(decode))
        running: deque = deque()
        for length, rows, members in plan:
            chosen = [indices[m] for m in members]
            request = Request(
                net=self.net,
                params=self.params,
                source=batches.pad_sources([work.sources[i] for i in chosen], rows, length, pad),
                lines=np.pad(np.asarray(chosen, np.int32) + work.first_line, (0, rows - len(chosen))),
                decode=decode,
                max_target_length=self.max_target_length,
                prefix=_padded(work.prefixes, chosen, rows, pad),
                start=_padded(work.starts, chosen, rows, pad),
                trace=work.trace,
            )
            running.append((chosen, MODES[decode.mode](request)))
            if len(running) > 1:
                yield self._read(*running.popleft())
        while running:
            yield self._read(*running.popleft())

    def _read(self, indices: list[int], found: Found) -> tuple[list[int], list["_Row"]]:
        best = found.hypotheses
        tokens, lengths, scores = jax.device_get((best.tokens, best.lengths, best.scores))
        statistics, trace = jax.device_get((found.statistics, found.trace))
        rows = []
        for row in range(len(indices)):
            # Every hypothesis ends in eos, which the caller doesn't need.
            ranked = [
                (tokens[row, n, : length - 1].tolist(), float(scores[row, n]))
                for n, length in enumerate(lengths[row].tolist())
                if length > 0
            ]
            seen = passes_of(trace, row, self.net.specials) if trace else []
            rows.append(_Row(ranked, {name: int(values[row]) for name, values in statistics.items()}, seen))
        return indices, rows


@dataclass(frozen=True)
class _Work:
    """Sentences as token ids, with their frames; prefixes and targets to fill are absent or one each."""

    sources: list[list[int]]
    prefixes: list[list[int]] | None
    starts: list[list[int]] | None
    trace: bool
    first_line: int

    def length(self, index: int) -> int:
        """What decides which batch a sentence goes into."""
        return max(len(self.sources[index]), len(self.starts[index]) if self.starts else 0)


@dataclass(frozen=True)
class _Row:
    ranked: list[tuple[list[int], float]]  # tokens and score, best first
    statistics: dict[str, int]
    trace: list[dict[str, list]]


def _padded(values: list[list[int]] | None, chosen: list[int], rows: int, pad: int) -> np.ndarray | None:
    """[rows, length] of the chosen ones, of a length from few; None where there are none."""
    if values is None:
        return None
    longest = max(len(values[i]) for i in chosen)
    return batches.pad_sources([values[i] for i in chosen], rows, batches.bucket(longest, at_least=8, halves=True), pad)
