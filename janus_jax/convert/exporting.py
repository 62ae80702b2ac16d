"""janus_jax checkpoints in other programs' forms.

- hf: a directory that transformers loads with trust_remote_code: weights, both Python files, tokenizer, generation settings.
- bart: the autoregressive half as stock BART, for transformers, CTranslate2 and what else reads BART; needs ar_stream
  "content", norm "post" and layernorm_embedding. Where bos starts the decoder and slots sit at their targets, the decoder's
  position table moves up by one row. The length head and CTC's blank are left out. Where eos starts the decoder, bos must be given as the
  next token, as published BART's settings do (transformers: forced_bos_token_id; CTranslate2: target_prefix).
- fairseq: model.pt with the released names, and dict.txt. The blank stands beside the model, where an import finds it and the
  released code, which has no CTC rows, does not.
- safetensors: the weights with the released names and the whole config, without pickle.

Each directory also holds our tokenizer's bytes. hf, fairseq and safetensors come back bit for bit through
`python -m janus_jax.convert import`; bart with what it holds.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import checkpoint, text
from janus_jax import config as config_lib
from janus_jax.config import Config, ModelConfig
from janus_jax.convert import card, fairseq_settings, files, huggingface
from janus_jax.convert.errors import ConvertError, library
from janus_jax.convert.fairseq import BLANK, COPIES, SHARED, params_to_released
from janus_jax.convert.hf_tokenizer import tokenizer_files
from janus_jax.convert.report import Report
from janus_jax.model import Janus
from janus_jax.text import BpeTokenizer, DictionaryTokenizer, Tokenizer
from janus_jax.types import Specials

_HF_CODE = Path(__file__).parent / "hf"
_HF_FILES = ("configuration_janus.py", "modeling_janus.py")
# Of ModelConfig, what only a running JAX program needs, or what another field says there.
_NOT_IN_HF = ("mask_token", "vocab_multiple", "dtype", "remat", "attention")
_EARLY_STOPPING = {"best": "never", "current": False, "released": True}


@dataclass(frozen=True)
class Exported:
    """A checkpoint ready to be written in some form."""

    name: str  # of the directory to come
    loaded: checkpoint.Loaded
    tokenizer: Tokenizer
    model: ModelConfig  # with its vocabulary's size
    specials: Specials  # the model's, whose mask may be unk
    arrays: dict[str, np.ndarray]  # released names, the embedding once

    @property
    def config(self) -> Config:
        """The checkpoint's."""
        return self.loaded.config


def export_model(checkpoint_path: str | Path, form: str, output: str | Path) -> Report:
    """Writes a checkpoint's model to the directory `output`.

    Raises:
      ConvertError: an unknown form, `output` exists, or the model has no such form; nothing is written then.
      CheckpointError: no checkpoint there.
    """
    if form not in FORMATS:
        raise ConvertError(f"--format={form}: choose from {', '.join(FORMATS)}")
    files.refuse_existing(output)
    loaded = checkpoint.load(checkpoint_path)
    tokenizer = text.load(loaded.tokenizer)
    model = replace(loaded.config.model, vocab_size=loaded.config.model.vocab_size or tokenizer.vocab_size)
    specials = Janus(model, tokenizer.specials).specials
    arrays = params_to_released(loaded.params, model)
    report = Report()
    with files.new_directory(output) as directory:
        FORMATS[form](Exported(Path(output).name, loaded, tokenizer, model, specials, arrays), directory, report)
        (directory / files.TOKENIZER).write_bytes(loaded.tokenizer)
    return report


def _hf(made: Exported, directory: Path, report: Report) -> None:
    settings = dataclasses.asdict(made.model)
    start = made.specials.bos if made.model.ar_start == "bos" else made.specials.eos
    described = {
        "model_type": "janus_jax",
        "architectures": ["JanusForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_janus.JanusConfig",
            "AutoModelForSeq2SeqLM": "modeling_janus.JanusForConditionalGeneration",
        },
        **{name: value for name, value in settings.items() if name not in _NOT_IN_HF},
        **{f"{name}_token_id": value for name, value in dataclasses.asdict(made.specials).items()},
        "decoder_start_token_id": start,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "janus_jax": _plain(made.config),
        "janus_jax_step": made.loaded.step,
    }
    files.write_json(directory / "config.json", described)
    files.write_json(directory / "generation_config.json", generation_config(made))
    for name in _HF_FILES:
        shutil.copyfile(_HF_CODE / name, directory / name)
    files.write_weights(directory / files.WEIGHTS[0], made.arrays)
    _write_tokenizer(made.tokenizer, directory)
    count = sum(array.size for array in made.arrays.values())
    text_of = card.model_card(made.name, made.loaded, made.model.vocab_size, count)
    (directory / "README.md").write_text(text_of, encoding="utf-8")
    report.used += list(made.arrays)


def generation_config(made: Exported) -> dict[str, Any]:
    """generation_config.json: settings of transformers' `generate` that equal the checkpoint's of mode ar."""
    ar, model, specials = made.config.decode.ar, made.model, made.specials
    released = made.config.decode.rules == "released"
    longest = min(made.config.data.max_target_length, model.max_positions)
    banned = [specials.pad] if released else [specials.pad, specials.bos, specials.mask]
    beams = {"early_stopping": _EARLY_STOPPING["released" if released else ar.stop]} if ar.beam > 1 else {}
    return {
        **{f"{name}_token_id": getattr(specials, name) for name in ("bos", "pad", "eos")},
        "decoder_start_token_id": specials.eos if model.ar_start == "eos" else specials.bos,
        "num_beams": ar.beam,
        "length_penalty": ar.lenpen,
        **beams,
        "do_sample": False,
        "suppress_tokens": banned,
        "min_new_tokens": max(ar.min_length, 1),
        "no_repeat_ngram_size": ar.no_repeat_ngram,
        "max_length": longest + (model.ar_start == "eos"),
        "max_length_a": ar.max_length_a,
        "max_length_b": ar.max_length_b,
    }


def _bart(made: Exported, directory: Path, report: Report) -> None:
    if reason := huggingface.why_not_bart(made.model):
        raise ConvertError(f"--format=bart: {reason}")
    arrays = huggingface.bart_arrays(made.arrays, made.model, report)
    files.write_json(directory / "config.json", huggingface.bart_config(made.model, made.specials))
    files.write_weights(directory / files.WEIGHTS[0], arrays)
    generation = generation_config(made)
    del generation["max_length_a"], generation["max_length_b"]  # stock BART's generate knows no such rule
    generation["forced_eos_token_id"] = made.specials.eos
    if made.model.ar_start == "eos":
        # As published BART: bos is forced, and counts as a token there. What suppresses bos would undo it.
        generation["forced_bos_token_id"] = made.specials.bos
        generation["min_new_tokens"] += 1
        generation["bad_words_ids"] = [[token] for token in generation.pop("suppress_tokens")]
    files.write_json(directory / "generation_config.json", generation)
    _write_tokenizer(made.tokenizer, directory)
    report.notes.append("max_length_a and max_length_b have no counterpart: outputs end at max_length")


def _fairseq(made: Exported, directory: Path, report: Report) -> None:
    torch = library("torch")
    arrays = dict(made.arrays) | dict.fromkeys(COPIES, made.arrays[SHARED])
    arrays |= {f"{side}.version": np.full(1, fairseq_settings.VERSION, np.float32) for side in ("encoder", "decoder")}
    config, model = made.config, made.model
    # Copies and not views: a view would bring all of its base along.
    weights = {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in arrays.items()}
    # fairseq refuses a model with a tensor that it does not know.
    beside = {"tensors": {BLANK: weights.pop(BLANK)}} if model.ctc_ratio else {}
    state = {
        "args": fairseq_settings.namespace(config, model),
        "cfg": None,
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "janus_loss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": made.loaded.step,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
        "janus_jax": {"config": config_lib.to_json(config), "step": made.loaded.step, **beside},
    }
    (directory / "dict.txt").write_bytes(_dictionary(made))
    torch.save(state, directory / "model.pt")
    report.used += list(made.arrays)
    report.created += [(name, f"equal to {SHARED}") for name in COPIES]
    report.created += [(f"{side}.version", "fairseq's") for side in ("encoder", "decoder")]
    report.notes += _differences(model)


def _differences(model: ModelConfig) -> list[str]:
    """What the released code computes otherwise than this model was trained to."""
    released_position = "target" if model.ar_start == "eos" else "input"
    checks = {
        "ar_stream": (model.ar_stream, "query"),
        "ar_slot_position": (model.ar_slot_position, released_position),
        "mask_token": (model.mask_token, "unk"),
        "ar_start": (model.ar_start, "eos" if model.layernorm_embedding else "bos"),
    }
    if model.layernorm_embedding:
        checks["nar_layernorm_embedding"] = (model.nar_layernorm_embedding, False)
    notes = [
        f"model.{name} is {ours!r}; the released code computes as with {theirs!r}, so its outputs differ"
        for name, (ours, theirs) in checks.items()
        if ours != theirs
    ]
    if model.ctc_ratio:
        notes.append(f"{BLANK}: stands under 'janus_jax', for an import; the released code has no CTC rows")
    return notes


def _dictionary(made: Exported) -> bytes:
    """dict.txt: a token and a count a line, id 4 first; fillers where a token cannot stand in such a file."""
    tokenizer, first = made.tokenizer, made.specials.unk + 1
    if isinstance(tokenizer, DictionaryTokenizer):
        words = tokenizer.words
    elif isinstance(tokenizer, BpeTokenizer):
        fields = json.loads(tokenizer.to_bytes())
        names = fields["model"]["vocab"] | {token["content"]: token["id"] for token in fields["added_tokens"]}
        by_id = {number: name for name, number in names.items()}
        words = [by_id.get(number, "") for number in range(tokenizer.vocab_size)]
    else:
        words = tokenizer.pieces(range(tokenizer.vocab_size))
    taken = {"<s>", "<pad>", "</s>", "<unk>"}
    lines = []
    for number in range(first, made.model.vocab_size):
        word = words[number] if number < len(words) else ""
        if not word or word in taken or "\n" in word or "\r" in word or word.endswith(" "):
            word = f"madeupword{number:04d}"
        taken.add(word)
        lines.append(f"{word} 1\n")
    return "".join(lines).encode()


def _safetensors(made: Exported, directory: Path, report: Report) -> None:
    files.write_weights(directory / files.WEIGHTS[0], made.arrays)
    files.write_json(directory / "config.json", _plain(made.config))
    files.write_json(directory / files.ABOUT, {"janus_jax_step": made.loaded.step})
    report.used += list(made.arrays)


def _write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    for name, content in tokenizer_files(tokenizer).items():
        (directory / name).write_text(content, encoding="utf-8")


def _plain(config: Config) -> dict[str, Any]:
    return json.loads(config_lib.to_json(config))


FORMATS: dict[str, Callable[[Exported, Path, Report], None]] = {
    "hf": _hf,
    "fairseq": _fairseq,
    "bart": _bart,
    "safetensors": _safetensors,
}
