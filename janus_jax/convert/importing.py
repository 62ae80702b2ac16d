"""Imports other programs' models, and exports of janus_jax, as janus_jax checkpoints.

Supported: released JANUS checkpoints of fairseq (translation, pretraining), fairseq's BART, Hugging Face BART
directories, and the hf, fairseq and safetensors exports of this package, which an import restores bit for bit.

The rules for another program's model; the report lists every rule that applied:
- A tensor that this architecture does not have is an error, unless its name matches --ignore=REGEX. Always left
  out: `*.version`, `*.embed_positions._float_tensor`, `classification_heads.*`, a `final_logits_bias` of zeros.
- Copies of the embedding (decoder, output projection, lm_head) must equal it.
- A missing tensor or a wrong shape is an error. Only a missing length head is created: N(0, 0.02) from a fixed seed,
  with min(positions, 1024) classes.
- Embedding rows beyond the tokenizer's are dropped, at most 128 or a tenth of all. In fairseq's BART the mask is the
  last row, after filler rows: it moves to the id of the tokenizer's mask, if that is the tokenizer's last token. If
  only the row of `<mask>` is missing, and `<mask>` is the last token, its row becomes the mean of all rows. Any other
  size is an error: the tokenizer does not fit.
- Position tables are cut to --max_positions, or to the length of the shorter one; they are never extended.
- float16, bfloat16 and float64 become float32. Any other type, and a number that is NaN or infinite, is an error.
- A file that holds checksums must agree with them: the members of a .pt file, and the tensors of our own exports. Other
  safetensors files and .pt files from before PyTorch 1.6 hold none.
- Settings (heads, norm, activation, scale, dropout) come from the file; --heads overrides, and is required if the file
  records no number of heads. Pickles are read without running anything in them (`pickles`).
- Settings of generation in generation_config.json (config.json in older models) become those of decode.ar where the two
  are equal; the report names the others.
- The written config: ar_start, slot positions and mask token as docs/method.md, section 2, describes the released models; BART
  like stock BART (ar_stream "content", masks by `<mask>`), with objective "ar", since it was trained for nothing else; data
  lengths are min(positions, 1024), targets no longer than the length head where the objective trains it; decode.mode
  "ar".
"""

import dataclasses
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import checkpoint, text
from janus_jax import config as config_lib
from janus_jax.config import Config, ModelConfig
from janus_jax.convert import fairseq_settings, files, fitting, generation, huggingface, pickles
from janus_jax.convert.errors import ConvertError
from janus_jax.convert.fairseq import params_from_released
from janus_jax.convert.report import Report
from janus_jax.text import SentencePieceTokenizer, Tokenizer, TokenizerError

SOURCES = ("fairseq", "hf", "safetensors")
# The objective of the released pretraining (docs/method.md, section 6).
_PRETRAINING = {
    "label_smoothing": 0.0,
    "normalize_by": "target",
    "weights": {
        "ar": 0.5, "nar": 0.5, "aux": 0.5, "length": 0.0, "kl_ar_nar": 0.0, "kl_nar_aux": 0.5, "kl_ar_aux": 0.5,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ImportRequest:
    """The arguments of an import; the command line has a flag for each."""

    source: str  # of SOURCES
    model: Path  # file or directory
    output: Path
    tokenizer: Path | None = None
    heads: int | None = None
    max_positions: int = 0
    ignore: str = ""


@dataclass(frozen=True)
class _ImportedModel:
    """A model in the form of a checkpoint."""

    arrays: dict[str, np.ndarray]  # released names
    model: ModelConfig  # with the size of its vocabulary
    config: Config
    tokenizer: bytes
    step: int
    one_space: bool = False  # runs of white space were one space in training


def import_model(request: ImportRequest) -> Report:
    """Imports the model of `request` and writes it as a checkpoint.

    Raises:
      ConvertError, TokenizerError, ConfigError: what is wrong with the model, the tokenizer or the request; nothing is
        written then.
    """
    files.refuse_existing(request.output)
    if request.source not in SOURCES:
        raise ConvertError(f"--from={request.source}: choose from {', '.join(SOURCES)}")
    if not request.model.exists():
        hub = f"; a model of the Hub is downloaded first: hf download {request.model} --local-dir DIR"
        raise ConvertError(f"--model={request.model}: no such file or directory{hub if request.source == 'hf' else ''}")
    if request.heads is not None and request.heads < 1:
        raise ConvertError(f"--heads={request.heads}: must be at least 1")
    if request.max_positions < 0:
        raise ConvertError(f"--max_positions={request.max_positions}: must be at least 1; leave it out to keep all")
    try:
        re.compile(request.ignore)
    except re.error as error:
        raise ConvertError(f"--ignore={request.ignore}: not a regular expression ({error})") from error
    report = Report()
    imported = (_from_fairseq if request.source == "fairseq" else _from_directory)(request, report)
    about = {"step": imported.step, "made_by": "import", "from": request.model.name, "source": request.source}
    about |= {"one_space": True} if imported.one_space else {}
    params = params_from_released(imported.arrays, imported.model)
    checkpoint.write(request.output, params, imported.config, imported.tokenizer, about)
    return report


def _from_fairseq(request: ImportRequest, report: Report) -> _ImportedModel:
    path = request.model / "model.pt" if request.model.is_dir() else request.model
    state = pickles.read(path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise ConvertError(f"{path}: holds no 'model'; a fairseq checkpoint does (--from=hf reads Hugging Face's)")
    arrays = files.as_float32(files.tensors(state["model"], path), report)
    if "janus_jax" in state:
        export = state["janus_jax"]
        try:
            raw = json.loads(export["config"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConvertError(f"{path}: its janus_jax settings are damaged; export the model again") from error
        if "tensors" in export:  # tensors that the released code does not have
            arrays |= files.as_float32(files.tensors(export["tensors"], path), report)
        origin = {"step": _step(export.get("step")), "one_space": export.get("one_space") is True}
        return _from_export(arrays, raw, path, request, report, **origin)
    tokenizer = _tokenizer(request, path.parent)
    if isinstance(tokenizer, SentencePieceTokenizer):
        # fairseq numbers the lines of dict.txt from 4, and puts <mask> last.
        raise ConvertError(
            "--tokenizer: a SentencePiece model does not say which row of the embedding belongs to which piece; give the dict.txt that "
            "the model was trained with, and text that is cut into pieces (spm_encode)"
        )
    settings = fairseq_settings.settings_of(state)
    model, family = fairseq_settings.architecture(arrays, settings, request.heads, report)
    options = fitting.FitOptions(request.ignore, request.max_positions, mask_is_last=family != "translation")
    arrays, model = fitting.fit(arrays, model, tokenizer, options, report)
    history = pickles.plain(state.get("optimizer_history"))
    last = history[-1] if isinstance(history, list) and history else None
    step = _step(last.get("num_updates")) if isinstance(last, dict) else 0
    return _from_other_program(arrays, model, family, tokenizer, step)


def _from_directory(request: ImportRequest, report: Report) -> _ImportedModel:
    directory = request.model
    if directory.is_file():
        raise ConvertError(
            f"--model={directory}: a file; name the directory that holds it and config.json: --model={directory.parent}"
        )
    config = files.read_json(directory / "config.json")
    arrays = files.as_float32(files.read_directory(directory), report)
    if config.get("model_type") == "janus_jax":
        if not isinstance(raw := config.get("janus_jax"), dict) or not raw:
            raise ConvertError(f"{directory / 'config.json'}: holds no janus_jax settings; export the model again")
        return _from_export(arrays, raw, directory / "config.json", request, report, **_origin(config))
    if isinstance(config.get("model"), dict):  # a safetensors export: all of it is janus_jax settings
        about = files.read_json(directory / files.ABOUT)
        return _from_export(arrays, config, directory / "config.json", request, report, **_origin(about))
    tokenizer = _tokenizer(request, directory)
    where = str(directory / "config.json")
    model = huggingface.architecture(config, request.heads, tokenizer.specials, where)
    named = huggingface.released_names(arrays, report)
    arrays, model = fitting.fit(
        named, model, tokenizer, fitting.FitOptions(request.ignore, request.max_positions), report
    )
    after_eos = model.ar_start == "eos"
    ar = generation.ar_settings(directory, config, tokenizer.specials, after_eos, report, model.max_positions)
    return _from_other_program(arrays, model, "bart", tokenizer, 0, ar)


def _from_export(
    arrays: dict[str, np.ndarray],
    raw: dict[str, Any],
    path: Path,
    request: ImportRequest,
    report: Report,
    *,
    step: int,
    one_space: bool,
) -> _ImportedModel:
    """An export of janus_jax, whose settings `raw` are in the file `path`: every tensor must exist and fit."""
    if request.heads or request.max_positions or request.ignore:
        raise ConvertError(
            "--heads, --max_positions, --ignore: this is an export of janus_jax, which holds its settings; leave these flags out"
        )
    try:
        config = config_lib.stored(raw)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ConvertError(f"{path}: its janus_jax settings are damaged: {error}") from error
    tokenizer = _exported_tokenizer(request, path.parent)
    model = replace(config.model, vocab_size=config.model.vocab_size or tokenizer.vocab_size)
    if tokenizer.vocab_size != model.vocab_size:
        raise ConvertError(
            f"--tokenizer: {tokenizer.vocab_size} tokens, but the model has {model.vocab_size}; give the tokenizer that it was exported with"
        )
    kept = fitting.without_harmless(arrays, "", report)
    fitting.check_numbers(kept)
    fitting.drop_copies(kept, report)
    fitting.check_shapes(kept, model, tokenizer.specials)
    report.used += list(kept)
    return _ImportedModel(kept, model, config, tokenizer.to_bytes(), step, one_space)


def _origin(values: dict[str, Any]) -> dict[str, Any]:
    """What the JSON of an export says about the training."""
    return {"step": _step(values.get("janus_jax_step")), "one_space": values.get("janus_jax_one_space") is True}


def _step(value: Any) -> int:
    """The training step that a file records; 0 where it records none."""
    return value if type(value) is int and value >= 0 else 0


def _from_other_program(
    arrays: dict[str, np.ndarray],
    model: ModelConfig,
    family: str,
    tokenizer: Tokenizer,
    step: int,
    ar: dict[str, Any] | None = None,
) -> _ImportedModel:
    """`ar`: settings of mode ar that the model comes with."""
    objective = {"translation": {}, "pretraining": _PRETRAINING, "bart": {"name": "ar"}}[family]
    max_length = min(model.max_positions, 1024)
    # The last class of the length head stands for all longer targets, which would teach it nothing.
    target = min(max_length, model.length_classes) if family == "translation" else max_length
    settings = {
        "model": dataclasses.asdict(model),
        "objective": objective,
        "data": {"max_source_length": max_length, "max_target_length": target},
        "decode": {"mode": "ar", "ar": ar or {}},
    }
    return _ImportedModel(arrays, model, config_lib.resolve(settings), tokenizer.to_bytes(), step)


def _tokenizer(request: ImportRequest, directory: Path) -> Tokenizer:
    """The tokenizer of --tokenizer, or else the one beside the weights."""
    if request.tokenizer is not None:
        if request.tokenizer.name == files.TOKENIZER:
            return text.load(_bytes(request.tokenizer), str(request.tokenizer))
        return text.read(request.tokenizer, "--tokenizer")
    if (directory / files.TOKENIZER).is_file():
        return text.load(_bytes(directory / files.TOKENIZER), str(directory / files.TOKENIZER))
    if request.source == "fairseq" and not (directory / "encoder.json").is_file():
        raise ConvertError(
            f"{directory}: holds no tokenizer; give --tokenizer: the dict.txt of a translation model, a folder with BART's "
            "dict.txt, encoder.json and vocab.bpe"
        )
    return text.read(directory, "--tokenizer")


def _exported_tokenizer(request: ImportRequest, directory: Path) -> Tokenizer:
    """The tokenizer of an export. Programs that change one, as transformers' Trainer, save it without our file."""
    try:
        return _tokenizer(request, directory)
    except (ConvertError, TokenizerError) as error:
        if request.tokenizer is not None or (directory / files.TOKENIZER).is_file():
            raise
        raise ConvertError(
            f"{directory}: without {files.TOKENIZER} its tokenizer cannot be restored; give the file of the export that "
            f"this model was made from: --tokenizer=EXPORT/{files.TOKENIZER} ({error})"
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read ({error.strerror})") from error
