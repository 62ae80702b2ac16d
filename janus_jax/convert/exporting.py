"""Exports janus_jax checkpoints in other programs' formats.

- hf: a directory that transformers loads with trust_remote_code, and that the Hugging Face Hub takes: weights, both Python
  files, tokenizer, generation settings, model card.
- bart: the autoregressive half as stock BART, for transformers, CTranslate2 and other programs that read BART; needs a
  trained AR half, ar_stream "content", norm "post" and layernorm_embedding. With ar_start "bos" and ar_slot_position
  "target", the decoder's position table moves up by one row. The length head and what only parallel rows use (CTC's
  blank and positions, DAG's positions and links, adapters) are left out. With ar_start "eos", bos must be forced as the
  next token, as for published BARTs (transformers: forced_bos_token_id; CTranslate2: target_prefix).
- fairseq: model.pt with the released names, and dict.txt. What only parallel rows use is stored beside the model, for
  imports: the released code has none of it and refuses unknown tensors.
- safetensors: the weights with the released names and the whole config, without pickle.

Each directory also holds the checkpoint's tokenizer. `python -m janus_jax.convert import` restores hf, fairseq and
safetensors exports bit for bit, and the part of the model that a bart export holds. No export holds the paths of the
configuration (data, tokenizer, init_from).
"""

import dataclasses
import fnmatch
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import checkpoint, text
from janus_jax import config as config_lib
from janus_jax.config import Config, DataConfig, ModelConfig
from janus_jax.convert import card, fairseq_settings, files, fitting, huggingface
from janus_jax.convert.errors import ConvertError, library, require
from janus_jax.convert.fairseq import COPIES, PARALLEL_ONLY, SHARED, parallel_only, params_to_released
from janus_jax.convert.hf_tokenizer import tokenizer_files
from janus_jax.convert.hub import CardOptions
from janus_jax.convert.report import Report
from janus_jax.convert.scores import Score, scores_of_file, scores_of_run
from janus_jax.decode import trained_modes
from janus_jax.model import Janus, draft_vocab
from janus_jax.text import BpeTokenizer, DictionaryTokenizer, Tokenizer
from janus_jax.types import Specials

_HF_CODE = Path(__file__).parent / "hf"
_HF_FILES = ("configuration_janus.py", "modeling_janus.py")
# Fields of ModelConfig that only JAX needs, or that another field of JanusConfig expresses.
_NOT_IN_HF = ("mask_token", "vocab_multiple", "dtype", "remat", "attention")
_NAMED_SPLITS = ("demo", "cmudict", "tfds")  # sources whose splits have names; those of the others are files
_NEEDED = {
    "hf": ("safetensors.numpy", "huggingface_hub"),
    "bart": ("safetensors.numpy",),
    "safetensors": ("safetensors.numpy",),
    "fairseq": ("torch",),
}
_EARLY_STOPPING = {"best": "never", "current": False, "released": True}


@dataclass(frozen=True)
class ExportedModel:
    """A checkpoint's model with all that a format may need."""

    name: str  # of the new directory
    loaded: checkpoint.Loaded
    tokenizer: Tokenizer
    model: ModelConfig  # with the size of its vocabulary
    specials: Specials  # the model's, whose mask may be unk
    arrays: dict[str, np.ndarray]  # by released name; the embedding once
    options: CardOptions
    scores: list[Score]

    @property
    def config(self) -> Config:
        """The checkpoint's configuration."""
        return self.loaded.config


def export_model(
    checkpoint_path: str | Path, format_name: str, output: str | Path, options: CardOptions | None = None
) -> Report:
    """Writes a checkpoint's model to the directory `output`.

    Args:
      checkpoint_path: a step directory, or a run's work directory.
      format_name: of FORMATS.
      output: the directory to write.
      options: for the model card of the format hf.

    Raises:
      ConvertError: the format is unknown or a library is missing, `output` exists, the Hub would refuse the options, the
        model holds numbers that are not finite, or the format cannot hold it; nothing is written.
      CheckpointError: `checkpoint_path` holds no complete checkpoint.
    """
    if format_name not in FORMATS:
        raise ConvertError(f"--format={format_name}: choose from {', '.join(FORMATS)}")
    if options and format_name != "hf":
        raise ConvertError(f"--format={format_name}: has no model card; leave out what is for it, or choose hf")
    files.refuse_existing(output)
    require(*_NEEDED[format_name])
    options = options or CardOptions()
    if format_name == "hf":
        options.check()
    step_directory = checkpoint.find(checkpoint_path)
    loaded = checkpoint.load(step_directory)
    scores = []
    if format_name == "hf":
        scores = scores_of_run(step_directory, loaded) + (
            scores_of_file(options.scores, loaded) if options.scores else []
        )
    tokenizer = text.load(loaded.tokenizer, f"the tokenizer of {checkpoint_path}")
    model = replace(loaded.config.model, vocab_size=loaded.config.model.vocab_size or tokenizer.vocab_size)
    specials = Janus(model, tokenizer.specials).specials
    arrays = params_to_released(loaded.params, model)
    fitting.check_numbers(arrays)
    report = Report()
    with files.new_directory(output) as directory:
        FORMATS[format_name](
            ExportedModel(Path(output).name, loaded, tokenizer, model, specials, arrays, options, scores),
            directory,
            report,
        )
        (directory / files.TOKENIZER).write_bytes(loaded.tokenizer)
    return report


def _hf(exported: ExportedModel, directory: Path, report: Report) -> None:
    settings, config = dataclasses.asdict(exported.model), without_paths(exported.config)
    start = exported.specials.bos if exported.model.ar_start == "bos" else exported.specials.eos
    hf_config = {
        "model_type": "janus_jax",
        "architectures": ["JanusForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_janus.JanusConfig",
            "AutoModel": "modeling_janus.JanusForConditionalGeneration",
            "AutoModelForSeq2SeqLM": "modeling_janus.JanusForConditionalGeneration",
        },
        **{name: value for name, value in settings.items() if name not in _NOT_IN_HF},
        **{f"{name}_token_id": value for name, value in dataclasses.asdict(exported.specials).items()},
        "draft_vocab": min(draft_vocab(exported.model), exported.model.vocab_size),
        "decoder_start_token_id": start,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "trained_modes": [mode for mode in trained_modes(config) if mode in ("ar", *card.PARALLEL)],
        "janus_jax": json.loads(config_lib.to_json(config)),
        **_about(exported),
    }
    files.write_json(directory / "config.json", hf_config)
    files.write_json(directory / "generation_config.json", generation_config(exported))
    for name in _HF_FILES:
        shutil.copyfile(_HF_CODE / name, directory / name)
    files.write_weights(directory / files.WEIGHTS[0], exported.arrays)
    _write_tokenizer(exported, directory)
    count = sum(array.size for array in exported.arrays.values())
    size = exported.model.vocab_size, count
    readme = card.model_card(exported.name, exported.loaded, config, *size, exported.options, exported.scores)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    report.used += list(exported.arrays)


def generation_config(exported: ExportedModel) -> dict[str, Any]:
    """generation_config.json: settings of transformers' `generate` that equal the checkpoint's settings of mode ar."""
    ar, model, specials = exported.config.decode.ar, exported.model, exported.specials
    released = exported.config.decode.rules == "released"
    max_length = min(exported.config.data.max_target_length, model.max_positions)
    banned = [specials.pad] if released else [specials.pad, specials.bos, specials.mask]
    if ar.sample:  # top_k 0 and top_p 1 limit nothing there either
        search = {"num_beams": 1, "do_sample": True}
        search |= {"temperature": ar.temperature, "top_k": ar.top_k, "top_p": ar.top_p}
    else:
        search = {"num_beams": ar.beam, "do_sample": False}
        search |= {"early_stopping": _EARLY_STOPPING["released" if released else ar.stop]} if ar.beam > 1 else {}
    return {
        **{f"{name}_token_id": getattr(specials, name) for name in ("bos", "pad", "eos")},
        "decoder_start_token_id": specials.eos if model.ar_start == "eos" else specials.bos,
        **search,
        "length_penalty": ar.lenpen,
        "suppress_tokens": banned,
        "min_new_tokens": max(ar.min_length, 1),
        "no_repeat_ngram_size": ar.no_repeat_ngram,
        "max_length": max_length + (model.ar_start == "eos"),
        "max_length_a": ar.max_length_a,
        "max_length_b": ar.max_length_b,
    }


def _bart(exported: ExportedModel, directory: Path, report: Report) -> None:
    if reason := huggingface.why_not_bart(exported.model):
        raise ConvertError(f"--format=bart: {reason}")
    if "ar" not in (trained := trained_modes(exported.config)):
        raise ConvertError(
            "--format=bart: holds the AR half, but this model was trained only for "
            f"{' and '.join(trained) or 'no mode'}; export with --format=hf"
        )
    arrays = huggingface.bart_arrays(exported.arrays, exported.model, report)
    files.write_json(directory / "config.json", huggingface.bart_config(exported.model, exported.specials))
    files.write_weights(directory / files.WEIGHTS[0], arrays)
    generation = generation_config(exported)
    del generation["max_length_a"], generation["max_length_b"]  # stock BART's generate has no such setting
    ar, first = exported.config.decode.ar, 2 if exported.model.ar_start == "eos" else 1  # tokens at the start
    if ar.max_length_a == 0:
        generation["max_length"] = min(generation["max_length"], first + ar.max_length_b + 1)
    else:
        report.notes.append("max_length_a and max_length_b do not exist in stock BART: outputs end at max_length")
    generation["forced_eos_token_id"] = exported.specials.eos
    if exported.model.ar_start == "eos":
        # As in published BARTs, bos is forced, and counts as a token there. suppress_tokens would suppress it.
        generation["forced_bos_token_id"] = exported.specials.bos
        generation["min_new_tokens"] += 1
        generation["bad_words_ids"] = [[token] for token in generation.pop("suppress_tokens")]
    files.write_json(directory / "generation_config.json", generation)
    _write_tokenizer(exported, directory)


def _fairseq(exported: ExportedModel, directory: Path, report: Report) -> None:
    torch = library("torch")
    arrays = dict(exported.arrays) | dict.fromkeys(COPIES, exported.arrays[SHARED])
    arrays |= {f"{side}.version": np.full(1, fairseq_settings.VERSION, np.float32) for side in ("encoder", "decoder")}
    config, model = exported.config, exported.model
    # Copies, not views: torch.save would write the whole base of a view.
    weights = {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in arrays.items()}
    # fairseq refuses a model with an unknown tensor.
    unknown = {name: weights.pop(name) for name in parallel_only(weights)}
    extra = {"tensors": unknown} if unknown else {}
    state = {
        "args": fairseq_settings.namespace(config, model),
        "cfg": None,
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "janus_loss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": exported.loaded.step,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
        "janus_jax": {
            "config": config_lib.to_json(without_paths(config)),
            "step": exported.loaded.step,
            "one_space": exported.loaded.one_space,
            **extra,
        },
    }
    (directory / "dict.txt").write_bytes(_dictionary(exported))
    torch.save(state, directory / "model.pt")
    report.used += list(exported.arrays)
    report.created += [(name, f"equal to {SHARED}") for name in COPIES]
    report.created += [(f"{side}.version", "the version of the format") for side in ("encoder", "decoder")]
    report.notes += _differences(model)
    report.notes += [
        f"{pattern}: stored under 'janus_jax', for imports; the released code has no such tensor"
        for pattern in PARALLEL_ONLY
        if fnmatch.filter(unknown, pattern)
    ]


def _differences(model: ModelConfig) -> list[str]:
    """Notes on what the released code computes differently from this model."""
    released_position = "target" if model.ar_start == "eos" else "input"
    checks = {
        "ar_stream": (model.ar_stream, "query"),
        "ar_slot_position": (model.ar_slot_position, released_position),
        "mask_token": (model.mask_token, "unk"),
        "ar_start": (model.ar_start, "eos" if model.layernorm_embedding else "bos"),
        "parallel_adapter_rank": (model.parallel_adapter_rank, 0),
    }
    if model.layernorm_embedding:
        checks["nar_layernorm_embedding"] = (model.nar_layernorm_embedding, False)
    return [
        f"model.{name} is {value!r}; the released code computes as with {released!r}, so its outputs differ"
        for name, (value, released) in checks.items()
        if value != released
    ]


def _dictionary(exported: ExportedModel) -> bytes:
    """dict.txt: one token and one count a line, from id 4; a filler replaces a token that the format cannot hold."""
    tokenizer, first = exported.tokenizer, exported.specials.unk + 1
    if isinstance(tokenizer, DictionaryTokenizer):
        words = tokenizer.words
    elif isinstance(tokenizer, BpeTokenizer):
        fields = json.loads(tokenizer.to_bytes())
        names = fields["model"]["vocab"] | {token["content"]: token["id"] for token in fields["added_tokens"]}
        by_id = {number: name for name, number in names.items()}
        words = [by_id.get(number, "") for number in range(tokenizer.vocab_size)]
    else:
        words = tokenizer.pieces(range(tokenizer.vocab_size))
    # Of a repeated word the last line counts.
    place = {word: number for number, word in enumerate(words)} | {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    lines = []
    for number in range(first, exported.model.vocab_size):
        word = words[number] if number < len(words) else ""
        if not word or place[word] != number or "\n" in word or "\r" in word or word.endswith(" "):
            word = f"madeupword{number:04d}"
            while word in place:
                word += "_"
        lines.append(f"{word} 1\n")
    return "".join(lines).encode()


def _safetensors(exported: ExportedModel, directory: Path, report: Report) -> None:
    files.write_weights(directory / files.WEIGHTS[0], exported.arrays)
    files.write_json(directory / "config.json", json.loads(config_lib.to_json(without_paths(exported.config))))
    files.write_json(directory / files.ABOUT, _about(exported))
    report.used += list(exported.arrays)


def _about(exported: ExportedModel) -> dict[str, Any]:
    """What an import restores beside the settings."""
    return {"janus_jax_step": exported.loaded.step, "janus_jax_one_space": exported.loaded.one_space}


def _write_tokenizer(exported: ExportedModel, directory: Path) -> None:
    # As in the model card: CTC and DAG rows reach their last position with fewer source tokens than positions.
    longest = min(exported.config.data.max_source_length, exported.model.max_positions)
    for name, content in tokenizer_files(exported.tokenizer, longest=longest).items():
        (directory / name).write_text(content, encoding="utf-8")


def without_paths(config: Config) -> Config:
    """The configuration with the default in place of each path: readers of a model neither have nor need the files."""
    data, default = config.data, DataConfig()
    splits = (
        {} if data.source in _NAMED_SPLITS else {name: getattr(default, name) for name in ("train", "valid", "test")}
    )
    return replace(
        config,
        init_from="",
        text=replace(config.text, model=""),
        data=replace(data, prepared=default.prepared, tfds_data_dir="", **splits),
    )


FORMATS: dict[str, Callable[[ExportedModel, Path, Report], None]] = {
    "hf": _hf,
    "fairseq": _fairseq,
    "bart": _bart,
    "safetensors": _safetensors,
}
