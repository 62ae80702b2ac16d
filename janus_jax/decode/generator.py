"""A model and sentences in, sentences out: tokenizing, batching, searching, putting back in order.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, T target slots, K length candidates.
"""

import contextlib
import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from janus_jax import checkpoint, config, parallel, text
from janus_jax.config import DecodeConfig, ParallelConfig
from janus_jax.decode import batches
from janus_jax.decode.ctc import check_model
from janus_jax.decode.modes import MODES, trained_modes
from janus_jax.decode.output import Output, Row, rows_of, without_repeats
from janus_jax.decode.request import Found, Request, rows_per_sentence
from janus_jax.decode.work import GAP, Work, bare, framed, with_fillings, with_gaps
from janus_jax.model import Janus
from janus_jax.text import Tokenizer
from janus_jax.types import Params

log = logging.getLogger(__name__)


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
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Args:
        net: the model.
        params: its parameters.
        tokenizer: of both languages; None if only `generate_ids` is used.
        decode_config: settings used where a call gives none.
        max_source_length: tokens, bos and eos counted, to which a longer source is cut.
        max_target_length: tokens, bos and eos counted, of the longest output.
        trained: modes whose rows were trained, for a warning; None: all.
        mesh: devices that share the work: sentences split over its axes data and fsdp, parameters by the rules of
          `parallel`; None: one device.
        """
        self.trained = tuple(MODES) if trained is None else trained
        self.net, self.params, self.tokenizer, self.mesh = net, params, tokenizer, mesh
        if mesh is not None:
            self.params = jax.device_put(params, parallel.state_shardings(mesh, params))
        self._outlooks: dict[DecodeConfig, Any] = {}
        self.decode_config = decode_config or DecodeConfig()
        self.max_source_length = max_source_length
        self.max_target_length = min(max_target_length, net.config.max_positions)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], devices: Sequence[jax.Device] | None = None) -> "Generator":
        """The generator of a training run or an imported model.

        Args:
          path: a checkpoint's step directory, or the directory that holds such (the latest is taken).
          devices: share the sentences of a batch; by default all accelerators at hand, or one CPU.

        Raises:
          FileNotFoundError, ValueError: as `checkpoint.load`.
        """
        if devices is None:
            devices = jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]
        loaded = checkpoint.load(path)
        params = loaded.params if len(devices) > 1 else jax.device_put(loaded.params, devices[0])
        tokenizer = text.load(loaded.tokenizer)
        trained, decode = trained_modes(loaded.config.objective), loaded.config.decode
        if trained and decode.mode not in trained:
            decode = dataclasses.replace(decode, mode=trained[0])
        architecture = loaded.config.model
        if not architecture.vocab_size:
            architecture = dataclasses.replace(architecture, vocab_size=tokenizer.vocab_size)
        return cls(
            Janus(architecture, tokenizer.specials),
            params,
            tokenizer,
            decode,
            max_source_length=loaded.config.data.max_source_length,
            max_target_length=loaded.config.data.max_target_length,
            trained=trained,
            mesh=parallel.make_mesh(ParallelConfig(), list(devices)) if len(devices) > 1 else None,
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
          prefixes: text that each output has to begin with (mode ar).
          targets: text to complete, a `<mask>` for each token that is missing (modes nar and infill).
          trace: also keep what each pass did (mode nar).
          first_line: number of the first line, where these are a part of something larger: each line draws its own samples.
          progress: called with the number of sentences just done.
          **settings: any field of `DecodeConfig` (mode, beam, lenpen, passes, length_beam, ...), over the generator's own.

        Raises:
          ConfigError: an unknown or impossible setting.
          ValueError: no tokenizer.
        """
        tokenizer = self._needed_tokenizer()
        return self.generate_ids(
            tokenizer.encode_batch(list(lines)),
            prefixes=None if prefixes is None else tokenizer.encode_batch(list(prefixes)),
            targets=None
            if targets is None
            else [with_gaps(target, tokenizer, self.net.specials.mask) for target in targets],
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
        decode, special = self.settings(settings), self.net.specials
        self._check(decode, len(sources), prefixes, targets)
        if trace and decode.mode != "nar":
            raise ValueError(f"trace: mode {decode.mode} has no passes to look at; use mode=nar")
        work = Work(
            framed(sources, self.max_source_length, "sources", special, first_line),
            prefixes=None
            if prefixes is None
            else [bare(one, special)[: self.max_target_length - 2] for one in prefixes],
            starts=None if targets is None else framed(targets, self.max_target_length, "targets", special, first_line),
            trace=trace,
            first_line=first_line,
        )
        return self._outputs(work, decode, progress)

    def score_infills(
        self,
        lines: Sequence[str],
        targets: Sequence[str],
        infills: Sequence[Sequence[str]],
        *,
        first_line: int = 0,
        progress: Callable[[int], Any] | None = None,
        **settings: Any,
    ) -> list[Output]:
        """What the model makes of given texts in the gaps of targets: p(gap tokens | source, all that is visible), in one pass.

        Args:
          lines: source text.
          targets: text with gaps, each a run of `<mask>`; how long the run is does not matter.
          infills: the text of each gap, in order.
          first_line, progress, **settings: as in `generate`.

        Returns:
          Completed texts; the score is the mean log-probability of the tokens in the gaps.

        Raises:
          ValueError: not one text a gap, an empty source, or no tokenizer.
        """
        tokenizer, special = self._needed_tokenizer(), self.net.specials
        decode = self.settings({**settings, "mode": "infill"})
        pairs = with_fillings(targets, infills, self.max_target_length - 2, tokenizer, special.mask, first_line + 1)
        self._check(decode, len(lines), None, targets)
        sources = framed(tokenizer.encode_batch(list(lines)), self.max_source_length, "sources", special, first_line)
        if not all(sources):
            raise ValueError(
                f"line {sources.index([]) + first_line + 1}: an empty source; nothing can be scored for it"
            )
        work = Work(
            sources,
            starts=framed([ids for ids, _ in pairs], self.max_target_length, "targets", special),
            fillings=[tokens for _, tokens in pairs],
        )
        return self._outputs(work, decode, progress)

    def _needed_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this generator has no tokenizer; give it one, or call generate_ids with token ids")
        return self.tokenizer

    def _outputs(self, work: Work, decode: DecodeConfig, progress: Callable[[int], Any] | None) -> list[Output]:
        if decode.mode not in self.trained:
            log.warning("mode %s: this model was trained for %s alone", decode.mode, " and ".join(self.trained))
        if decode.mode == "ctc":
            check_model(self.net, max(map(len, work.sources), default=0))
        outputs = [Output("", 0.0, []) for _ in work.sources]
        empty = [
            not source or (work.starts is not None and not work.starts[i]) for i, source in enumerate(work.sources)
        ]
        if progress:
            progress(sum(empty))
        for indices, rows in self._search(work, [i for i in range(len(empty)) if not empty[i]], decode):
            for index, row in zip(indices, rows, strict=True):
                outputs[index] = self._output(row, decode)
            if progress:
                progress(len(indices))
        return outputs

    def _output(self, row: Row, decode: DecodeConfig) -> Output:
        merge = decode.merge_repeats and decode.mode == "nar"
        ranked = [(without_repeats(tokens) if merge else tokens, score) for tokens, score in row.ranked]
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
        for name, given, modes in (("prefixes", prefixes, ("ar",)), ("targets", targets, ("nar", "infill"))):
            if given is None:
                continue
            if len(given) != count:
                raise ValueError(f"{name}: {len(given)} given for {count} lines; give one a line")
            if decode.mode not in modes:
                raise ValueError(f"{name}: mode {decode.mode} takes none; use mode={' or '.join(modes)}")
        if decode.mode == "infill" and targets is None:
            raise ValueError(f"targets: mode infill completes given text; give a target with {GAP} in it for each line")

    def settings(self, changes: dict[str, Any]) -> DecodeConfig:
        """The generator's settings with these changes (None: no change).

        Raises:
          ConfigError: an unknown or impossible setting.
        """
        values = {**dataclasses.asdict(self.decode_config), **{k: v for k, v in changes.items() if v is not None}}
        return config.resolve({"decode": values}).decode

    def _search(self, work: Work, indices: list[int], decode: DecodeConfig) -> Iterator[tuple[list[int], list[Row]]]:
        """Batches in whatever order: (indices, what was found). One batch runs while the one before is read."""
        if decode.draft_from == "auto" and "ctc" not in self.trained:
            decode = dataclasses.replace(decode, draft_from="nar")
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1
        lengths = [work.length(i) for i in indices]
        plan = batches.plan_batches(lengths, decode.batch_tokens, rows_per_sentence(decode), ways)
        running: deque = deque()
        for length, rows, members in plan:
            chosen = [indices[m] for m in members]
            request = Request(
                net=self.net,
                params=self.params,
                decode=decode,
                max_target_length=self.max_target_length,
                trace=work.trace,
                outlook=self._outlooks.get(decode),
                **work.arrays(chosen, rows, length, self.net.specials.pad),
            )
            with jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
                found = MODES[decode.mode](request)
            running.append((chosen, found))
            if len(running) > 1:
                yield self._read(*running.popleft(), decode)
        while running:
            yield self._read(*running.popleft(), decode)

    def _read(self, indices: list[int], found: Found, decode: DecodeConfig) -> tuple[list[int], list[Row]]:
        self._outlooks[decode] = jax.device_get(found.outlook)
        return indices, rows_of(found, len(indices), self.net.specials)
