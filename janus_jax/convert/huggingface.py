"""Hugging Face BART <-> released names and our architecture.

Names differ in the prefix `model.`, in the shared embedding's (`model.shared.weight`) and in `lm_head.weight` and
`final_logits_bias`; arrays are equal. BART predicts from its content rows, and its position of decoder token t is t.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.config import ModelConfig
from janus_jax.convert.errors import ConvertError
from janus_jax.convert.fairseq import COPIES, LENGTHS, SHARED, parallel_only
from janus_jax.convert.report import Report
from janus_jax.convert.values import flag, rate, shown, whole
from janus_jax.types import Specials

_SHARED_NAMES = (SHARED, "shared.weight", COPIES[0], "lm_head.weight")  # the first one that exists is the embedding
_BIAS = "final_logits_bias"
# Settings of older BART variants that newer transformers no longer reads.
_UNSUPPORTED = {
    "normalize_before": True, "add_final_layer_norm": True, "static_position_embeddings": True, "normalize_embedding": False,
}  # fmt: skip


def released_names(weights: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Renames tensors, with or without the prefix `model.`, to released names; further copies of the embedding keep
    their names.

    Raises:
      ConvertError: the output bias is not zero.
    """
    plain: dict[str, Any] = {}
    for name, value in weights.items():
        short = name.removeprefix("model.")
        if short in plain:
            raise ConvertError(f"{short} and model.{short} are both there: foreign checkpoint")
        plain[short] = value
    if _BIAS in plain:
        bias = np.asarray(plain.pop(_BIAS))
        if bias.any():
            raise ConvertError(f"{_BIAS} is not zero: janus_jax models have no output bias, so it cannot be imported")
        report.ignored.append((_BIAS, "all zero, and janus_jax models have no output bias"))
    for name in _SHARED_NAMES:
        if name in plain:
            return {SHARED: plain.pop(name)} | plain
    return plain


def architecture(config: Mapping[str, Any], heads: int | None, specials: Specials, where: str) -> ModelConfig:
    """The architecture of a BartConfig (as JSON).

    Args:
      config: content of config.json.
      heads: the user's number of heads; overrides the config.
      specials: special tokens of the tokenizer.
      where: path of the file, for messages.

    Raises:
      ConvertError: the model is not BART, is a variant that janus_jax does not have, or its ids differ from the
        tokenizer's.
    """
    kind = config.get("model_type")
    if kind != "bart":
        raise ConvertError(
            f"{where}: model_type is {shown(kind)}; only bart models and exports of janus_jax can be imported"
        )
    for name, value in _UNSUPPORTED.items():
        if config.get(name) is not None and flag(config[name], f"{where}: {name}") == value:
            raise ConvertError(f"{where}: {name} is {value}; janus_jax has no such BART variant")
    for name in ("bos", "pad", "eos"):
        number = config.get(f"{name}_token_id")
        if number is not None and number != getattr(specials, name):
            raise ConvertError(
                f"{where}: {name}_token_id is {shown(number)}, but {getattr(specials, name)} in the tokenizer; give the model's tokenizer with --tokenizer"
            )
    start = config.get("decoder_start_token_id", specials.eos)
    if start not in (specials.eos, specials.bos):
        raise ConvertError(
            f"{where}: decoder_start_token_id is {shown(start)}; it must be eos ({specials.eos}) or bos ({specials.bos})"
        )
    activation = config.get("activation_function", "gelu")
    if activation not in ("gelu", "relu"):
        raise ConvertError(f"{where}: activation_function {shown(activation)} is not supported; choose from gelu, relu")
    positions = _number(config, "max_position_embeddings", where)
    return ModelConfig(
        vocab_size=_number(config, "vocab_size", where),
        d_model=_number(config, "d_model", where),
        ffn_dim=_both(config, "ffn_dim", where),
        heads=_divisor(heads or _both(config, "attention_heads", where), config, where),
        encoder_layers=_number(config, "encoder_layers", where),
        decoder_layers=_number(config, "decoder_layers", where),
        max_positions=positions,
        length_classes=min(positions, 1024),
        activation=activation,
        scale_embedding=flag(config.get("scale_embedding", False), f"{where}: scale_embedding"),
        layernorm_embedding=True,
        dropout=rate(config.get("dropout", 0.1), f"{where}: dropout"),
        attention_dropout=rate(config.get("attention_dropout", 0.0), f"{where}: attention_dropout"),
        activation_dropout=rate(config.get("activation_dropout", 0.0), f"{where}: activation_dropout"),
        ar_stream="content",
        ar_start="eos" if start == specials.eos else "bos",
        ar_slot_position="target" if start == specials.eos else "input",
    )


def why_not_bart(model: ModelConfig) -> str | None:
    """Why no stock BART model computes the same as `model`, or None if one does."""
    if model.ar_stream != "content":
        return (
            'model.ar_stream is "query": its tokens are predicted from mask rows, which BART does not have; export with '
            '--format=hf, or train with ar_stream "content"'
        )
    if model.norm != "post":
        return 'model.norm is "pre": BART normalises after each half of a layer; export with --format=hf'
    if not model.layernorm_embedding:
        return "model.layernorm_embedding is False: BART always normalises its embeddings; export with --format=hf"
    return None


def bart_config(model: ModelConfig, specials: Specials) -> dict[str, Any]:
    """config.json of the BART that computes the same as `model` in mode ar."""
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": getattr(model, f"{side}_layers"),
            "ffn_dim": model.ffn_dim,
            "attention_heads": model.heads,
            "layerdrop": 0.0,
        }.items()
    }
    return {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        **sides,
        "max_position_embeddings": model.max_positions,
        "activation_function": model.activation,
        "scale_embedding": model.scale_embedding,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "bos_token_id": specials.bos,
        "pad_token_id": specials.pad,
        "eos_token_id": specials.eos,
        "decoder_start_token_id": specials.eos if model.ar_start == "eos" else specials.bos,
        # The converter of CTranslate2 reads these.
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "static_position_embeddings": False,
        "dtype": "float32",
    }


def bart_arrays(released: Mapping[str, np.ndarray], model: ModelConfig, report: Report) -> dict[str, np.ndarray]:
    """Renames released arrays to BART's names, and shifts the decoder's positions where ar_slot_position is "target".

    With ar_start "bos" and ar_slot_position "target", the row that reads bos has position 1 here and position 0 in
    BART, so the table moves up by one. Row 0 is dropped (only non-autoregressive rows read it); the new last row is a
    copy of the row before it, and nothing reads it.
    """
    arrays = dict(released)
    del arrays[LENGTHS]
    report.ignored.append((LENGTHS, "BART predicts no lengths"))
    for name in parallel_only(arrays):
        del arrays[name]
        report.ignored.append((name, "AR rows do not use it, and BART has no others"))
    if model.ar_start == "bos" and model.ar_slot_position == "target":
        name = "decoder.embed_positions.weight"
        table = arrays[name]
        arrays[name] = np.concatenate([table[:2], table[3:], table[-1:]])
        report.notes.append(
            f"{name}: moved up by one position, row 0 (only non-autoregressive rows read it) is dropped"
        )
    report.used += list(arrays)
    shared = {"model.shared.weight": arrays.pop(SHARED)}
    bias = {_BIAS: np.zeros((1, model.vocab_size), np.float32)}
    return shared | {f"model.{name}": value for name, value in arrays.items()} | bias


def _number(config: Mapping[str, Any], name: str, where: str) -> int:
    return whole(config.get(name), f"{where}: {name}")


def _both(config: Mapping[str, Any], name: str, where: str) -> int:
    values = [_number(config, f"{side}_{name}", where) for side in ("encoder", "decoder")]
    if values[0] != values[1]:
        raise ConvertError(f"{where}: encoder_{name} {values[0]} and decoder_{name} {values[1]} must be equal")
    return values[0]


def _divisor(heads: int, config: Mapping[str, Any], where: str) -> int:
    if config["d_model"] % heads:
        raise ConvertError(f"{where}: {heads} heads do not divide d_model {config['d_model']}")
    return heads
