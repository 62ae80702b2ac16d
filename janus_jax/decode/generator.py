"""Sentences in, sentences out, with one model: tokenizes, batches, searches, and restores the order."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from janus_jax import checkpoint, parallel, text
from janus_jax.config import ConfigError, DecodeConfig, ParallelConfig
from janus_jax.data.sources import glge_marks
from janus_jax.decode.batching import Sentences, bare, cut_to, framed, plan_batches, sentence_results
from janus_jax.decode.gaps import GAP, with_fillings, with_gaps
from janus_jax.decode.keywords import with_keywords
from janus_jax.decode.modes import MODES, trained_modes
from janus_jax.decode.search.draft_policy import DraftPolicy
from janus_jax.decode.types import DecodePlan, DecodeRequest, DecodeResult, Output, SentenceResult
from janus_jax.model import Janus
from janus_jax.text import Tokenizer, list_of_texts
from janus_jax.types import Params


class Generator:
    """Decodes sentences with one set of weights, in any mode.

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
        trained: tuple[str, ...] | None = None,
        source_marks: tuple[str, ...] = (),
        one_space: bool = False,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Args:
        net: the model.
        params: its parameters.
        tokenizer: of both languages; None if only `generate_ids` is used.
        decode_config: settings; a call may change them.
        max_source_length: tokens, bos and eos counted, to which a longer source is cut.
        max_target_length: tokens, bos and eos counted, of the longest output.
        trained: modes that the model was trained for; any other is an error unless `allow_untrained` is set. None: all.
        source_marks: pieces of text that are taken out of each source, as they were for training.
        one_space: runs of white space in a text become one space, as they did for training.
        mesh: devices; the sentences of a batch are split over its axes data and fsdp, parameters by the rules of
          `parallel`. None: one device.
        """
        self.trained = tuple(MODES) if trained is None else trained
        self.net, self.params, self.tokenizer, self.mesh = net, params, tokenizer, mesh
        self.source_marks, self.one_space = source_marks, one_space
        if mesh is not None:
            self.params = jax.device_put(params, parallel.state_shardings(mesh, params))
        self._policies: dict[
            DecodeConfig, DraftPolicy
        ] = {}  # what drafts have earned; samples share it, whatever their seed
        self.decode_config = decode_config or DecodeConfig()
        self.max_source_length = min(max_source_length, net.config.max_positions)
        self.max_target_length = min(max_target_length, net.config.max_positions)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], devices: Sequence[jax.Device] | None = None) -> "Generator":
        """The generator of a training run or an imported model.

        Args:
          path: a step directory of a checkpoint, or the directory that holds such (the latest is taken).
          devices: that share the sentences of a batch; by default all local accelerators, or one CPU.

        Raises:
          FileNotFoundError, ValueError: as `checkpoint.load`.
        """
        if devices is None:
            devices = jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]
        loaded = checkpoint.load(path, devices[0])
        if loaded.config.model.draft_heads and "key" not in loaded.params["draft_heads"]:
            raise ValueError(
                f"{path}: its draft heads are those of an earlier version, with other parameters; train them again "
                "(configs/heads.py)"
            )
        tokenizer = text.load(loaded.tokenizer, f"the tokenizer of {path}")
        trained, decode = trained_modes(loaded.config), loaded.config.decode
        if trained and decode.mode not in trained:
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
            source_marks=glge_marks(loaded.config.data) if loaded.config.data.source == "glge" else (),
            one_space=loaded.one_space,
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
        """Decodes lines: one output for each line, in their order.

        An empty line gives an empty output. Lines longer than `max_source_length` are cut, with one warning.

        Args:
          lines: source text.
          prefixes: text that each output has to begin with (mode ar).
          targets: text to complete, with one `<mask>` for each missing token (modes nar and infill).
          trace: also keep the tokens of each pass (modes nar and speculative).
          first_line: line number of the first line, if they are a part of a longer text: random samples depend on it.
          progress: called with the number of sentences just decoded.
          **settings: changes of the generator's settings: mode, nbest, rules, batch_tokens, or a field of the mode's
            settings (beam, passes, ...), see `keywords`.

        Raises:
          ConfigError: an unknown or impossible setting, or a mode that the model was not trained for.
          TypeError: a plain string in place of a list of texts.
          ValueError: inputs that the mode does not take or lacks, or no tokenizer.
        """
        tokenizer = self._require_tokenizer()
        return self.generate_ids(
            self.encoded(lines),
            prefixes=None if prefixes is None else tokenizer.encode_batch(self.spaced("prefixes", prefixes)),
            targets=None
            if targets is None
            else with_gaps(self.spaced("targets", targets), tokenizer, self.net.specials.mask, first_line + 1),
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
        """`generate` for token ids, with or without bos, eos and padding.

        Raises:
          TypeError, ValueError: as `generate`, or ids that are not in the vocabulary.
        """
        decode, special = self.settings(settings), self.net.specials
        sources = self._ids("sources", sources, first_line)
        prefixes = None if prefixes is None else self._ids("prefixes", prefixes, first_line)
        targets = None if targets is None else self._ids("targets", targets, first_line)
        self._check_inputs(decode.mode, len(sources), {"prefixes": prefixes, "targets": targets})
        if trace and not MODES[decode.mode].traces:
            modes = " or ".join(name for name, mode in MODES.items() if mode.traces)
            raise ValueError(f"trace: mode {decode.mode} has no passes to record; use mode={modes}")
        sentences = Sentences(
            framed(sources, self.max_source_length, "sources", special, first_line),
            prefixes=None
            if prefixes is None
            else cut_to(prefixes, self.max_target_length - 2, "prefixes", special, first_line),
            starts=None if targets is None else framed(targets, self.max_target_length, "targets", special, first_line),
            first_line=first_line,
        )
        return self._decode(sentences, decode, trace, progress)

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
        """Scores texts in the gaps of targets by p(gap tokens | source, visible tokens), in one pass (mode infill).

        Args:
          lines: source text.
          targets: text with gaps; each gap is a run of `<mask>` of any length.
          infills: the text of each gap, in order.
          first_line, progress, **settings: as in `generate`, for mode infill.

        Returns:
          Completed texts; a score is the mean log-probability of the gap tokens.

        Raises:
          TypeError: a plain string in place of a list of texts.
          ValueError: a gap without text, a text without gap, an empty source, or no tokenizer.
        """
        tokenizer, special = self._require_tokenizer(), self.net.specials
        decode = self.settings({**settings, "mode": "infill"})
        lines, targets = list_of_texts("lines", lines), self.spaced("targets", targets)
        if isinstance(infills, str):
            raise TypeError("infills: a plain string; pass a list with a list of texts for each line")
        infills = [self.spaced(f"infills[{i}]", one) for i, one in enumerate(infills)]
        pairs = with_fillings(targets, infills, self.max_target_length - 2, tokenizer, special.mask, first_line + 1)
        self._check_inputs(decode.mode, len(lines), {"targets": targets, "infills": infills})
        sources = framed(self.encoded(lines), self.max_source_length, "sources", special, first_line)
        if not all(sources):
            raise ValueError(
                f"line {sources.index([]) + first_line + 1}: an empty source, for which nothing can be scored"
            )
        sentences = Sentences(
            sources,
            starts=framed([ids for ids, _ in pairs], self.max_target_length, "targets", special),
            fillings=[tokens for _, tokens in pairs],
        )
        return self._decode(sentences, decode, False, progress)

    def encoded(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of source lines, without bos and eos; marks and white space are changed as they were for training.

        Raises:
          TypeError: a plain string in place of a list of lines.
          ValueError: no tokenizer.
        """
        texts = list_of_texts("lines", lines)
        for mark in self.source_marks:
            texts = [text.replace(mark, "") for text in texts]
        return self._require_tokenizer().encode_batch(self.spaced("lines", texts))

    def spaced(self, name: str, texts: Sequence[str]) -> list[str]:
        """Texts with their white space changed as it was for training.

        Raises:
          TypeError: a plain string in place of a list of texts; the message has `name`.
        """
        texts = list_of_texts(name, texts)
        return [" ".join(text.split()) for text in texts] if self.one_space else texts

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this generator has no tokenizer; give it one, or call generate_ids with token ids")
        return self.tokenizer

    def settings(self, changes: dict[str, Any]) -> DecodeConfig:
        """The generator's settings with these changes, keywords as in `generate` (None: no change).

        Raises:
          ConfigError: an unknown or impossible setting, or a mode that the model was not trained for.
        """
        try:
            decode = with_keywords(self.decode_config, changes)
            if check := MODES[decode.mode].check:
                check(self._plan(decode))
        except ConfigError as error:  # it names places of a config; the caller gave keywords
            raise ConfigError(re.sub(r"\bconfig\.decode\.(?:\w+\.)?(\w+)", r"\1", str(error))) from error
        if decode.allow_untrained:
            return decode
        trained = " or ".join(self.trained) or "no mode"
        if decode.mode not in self.trained:
            drafts = "; speculation needs draft heads, or rows of another mode" if decode.mode == "speculative" else ""
            raise ConfigError(
                f"mode: {decode.mode}, but this model was trained only for {trained}{drafts}; choose that, or set allow_untrained "
                "(--allow_untrained of decode, or in a --setting of evaluate)"
            )
        drafter = getattr(decode.chosen, "draft_from", "auto")
        if drafter in MODES and drafter not in self.trained and decode.chosen.draft != "never":
            raise ConfigError(
                f"draft_from: {drafter}, but this model was trained only for {trained}; set draft_from to auto, or set "
                "allow_untrained"
            )
        if getattr(decode.chosen, "rerank", "none") == "ar" and "ar" not in self.trained:
            raise ConfigError(
                f"rerank: ar, but this model was trained only for {trained}; set rerank to none, or set allow_untrained"
            )
        return decode

    def check(self, lines: Sequence[str], first_line: int = 0, **settings: Any) -> None:
        """Raises what `generate` would raise for these lines and settings, without decoding."""
        self._require_tokenizer()
        lines = list_of_texts("lines", lines)
        # Of a mode without a check only their number counts.
        ids = self.encoded(lines) if MODES[self.settings(settings).mode].check else [[]] * len(lines)
        self.check_ids(ids, first_line, **settings)

    def check_ids(self, sources: Sequence[Sequence[int]], first_line: int = 0, **settings: Any) -> None:
        """`check` for token ids, with or without bos, eos and padding."""
        decode = self.settings(settings)
        self._check_inputs(decode.mode, len(sources), {})
        if not (check := MODES[decode.mode].check):
            return
        lengths = [len(bare(one, self.net.specials)) + 2 for one in sources]
        longest = max(lengths, default=2)
        try:
            check(self._plan(decode, min(longest, self.max_source_length)))
        except ConfigError as error:
            raise ConfigError(
                f"{error} (the longest source is number {lengths.index(longest) + 1 + first_line})"
            ) from error

    def _plan(self, decode: DecodeConfig, longest_source: int = 0, has_targets: bool = False) -> DecodePlan:
        return DecodePlan(self.net, decode, self.max_target_length, self.trained, longest_source, has_targets)

    def fingerprint(self) -> str:
        """A hash of the model's content that decides its outputs: parameters, architecture, tokenizer, limits."""
        content = [
            checkpoint.checksums({"params": self.params}),
            dataclasses.asdict(self.net.config),
            dataclasses.asdict(self.net.specials),
            None if self.tokenizer is None else hashlib.sha256(self.tokenizer.to_bytes()).hexdigest(),
            self.max_source_length,
            self.max_target_length,
            self.trained,
            self.source_marks,
            self.one_space,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _ids(self, name: str, sentences: Sequence[Sequence[int]], first_line: int) -> list[list[int]]:
        """Token ids as lists of integers.

        Raises:
          TypeError: no list of lists of numbers.
          ValueError: an id that is not in the vocabulary.
        """
        vocab = self.net.config.vocab_size
        ids = []
        for number, sentence in enumerate(sentences, first_line + 1):
            if isinstance(sentences, str) or isinstance(sentence, str) or not hasattr(sentence, "__iter__"):
                raise TypeError(
                    f"{name}: {sentence!r} is no list of token ids; pass a list of lists, one for each line"
                )
            ids.append(list(map(int, sentence)))
            if ids[-1] and (min(ids[-1]) < 0 or max(ids[-1]) >= vocab):
                raise ValueError(f"{name}: line {number} has a token id outside the vocabulary, 0 to {vocab - 1}")
        return ids

    def _check_inputs(self, mode: str, count: int, inputs: dict[str, Sequence | None]) -> None:
        """Raises ValueError for inputs that the mode does not take, that it lacks, or that are not one for each line."""
        for name, values in inputs.items():
            if values is None:
                continue
            if name not in MODES[mode].inputs:
                modes = " or ".join(other for other, entry in MODES.items() if name in entry.inputs)
                raise ValueError(f"{name}: mode {mode} takes none; use mode={modes}")
            if len(values) != count:
                raise ValueError(f"{name}: {len(values)} for {count} lines; give one for each line")
        for name in MODES[mode].required:
            if inputs.get(name) is None:
                hint = f" with {GAP} in it" if name == "targets" else ""
                raise ValueError(f"{name}: mode {mode} needs them; give one{hint} for each line")

    def _decode(
        self, sentences: Sentences, decode: DecodeConfig, trace: bool, progress: Callable[[int], Any] | None
    ) -> list[Output]:
        mode = MODES[decode.mode]
        if mode.check:
            longest = max(map(len, sentences.sources), default=0)
            mode.check(self._plan(decode, longest, sentences.starts is not None))
        outputs = [Output("", 0.0, []) for _ in sentences.sources]
        starts = sentences.starts or sentences.sources
        wanted = [
            i for i, (source, start) in enumerate(zip(sentences.sources, starts, strict=True)) if source and start
        ]
        if progress:
            progress(len(outputs) - len(wanted))
        for indices, results in self._results(sentences, wanted, decode, trace):
            for index, result in zip(indices, results, strict=True):
                outputs[index] = self._output(result)
            if progress:
                progress(len(indices))
        return outputs

    def _results(
        self, sentences: Sentences, indices: list[int], decode: DecodeConfig, trace: bool
    ) -> Iterator[tuple[list[int], list[SentenceResult]]]:
        """Batches in any order: (indices, their results). A batch runs while the one before is read."""
        mode = MODES[decode.mode]
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1
        lengths = [sentences.length(i) for i in indices]
        running: deque[tuple[list[int], DecodeResult]] = deque()
        for length, rows, members in plan_batches(lengths, decode.batch_tokens, mode.rows(decode), ways):
            batch = [indices[m] for m in members]
            request = DecodeRequest(
                net=self.net,
                params=self.params,
                decode=decode,
                max_target_length=self.max_target_length,
                trained=self.trained,
                trace=trace,
                policy=self._policies.get(_without_seed(decode)),
                **sentences.arrays(batch, rows, length, self.net.specials.pad),
            )
            with jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
                running.append((batch, mode.run(request)))
            if len(running) > 1:
                yield self._read(*running.popleft(), decode)
        while running:
            yield self._read(*running.popleft(), decode)

    def _read(
        self, indices: list[int], result: DecodeResult, decode: DecodeConfig
    ) -> tuple[list[int], list[SentenceResult]]:
        """Waits for a batch."""
        if result.policy is not None:
            self._policies[_without_seed(decode)] = jax.device_get(result.policy)
        results = sentence_results(result, len(indices), self.net.specials)
        return indices, results

    def _output(self, result: SentenceResult) -> Output:
        texts = [""] * len(result.ranked)
        if self.tokenizer:
            texts = self.tokenizer.decode_batch([tokens for tokens, _, _ in result.ranked])
        ranked = [
            Output(text, score, tokens, token_scores=token_scores)
            for text, (tokens, score, token_scores) in zip(texts, result.ranked, strict=True)
        ]
        if not ranked:
            return Output("", 0.0, [], result.statistics)
        texts_of = ("tokens", "drafted")
        trace = tuple(
            {name: self._pieces(value) if name in texts_of else value for name, value in one.items()}
            for one in result.trace
        )
        return dataclasses.replace(ranked[0], statistics=result.statistics, others=tuple(ranked[1:]), trace=trace)

    def _pieces(self, ids: list[int]) -> list[str]:
        return self.tokenizer.pieces(ids) if self.tokenizer else [str(token) for token in ids]


def _without_seed(decode: DecodeConfig) -> DecodeConfig:
    return dataclasses.replace(decode, ar=dataclasses.replace(decode.ar, seed=0))
