"""fairseq's settings of a model <-> the architecture of janus_jax.

A checkpoint holds them as `args` (a flat namespace) or as `cfg` (OmegaConf; its `model` is flat, or has groups
`encoder` and `decoder`). The tensors distinguish three families: `decoder.embed_length` marks JANUS, an embedding layer
norm marks BART; both mark the JANUS pretraining model, neither a plain Transformer, which is refused (its targets start
differently).
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from janus_jax.config import Config, ModelConfig
from janus_jax.convert import pickles
from janus_jax.convert.errors import ConvertError
from janus_jax.convert.fairseq import LENGTHS, SHARED, check_matrices, count_layers
from janus_jax.convert.report import Report
from janus_jax.convert.values import flag, rate, shown, whole

Family = Literal["translation", "pretraining", "bart"]

VERSION = 3.0  # a buffer of encoder and decoder in every fairseq checkpoint
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu"}
_ACTIVATION_OF = {"translation": "relu", "pretraining": "gelu", "bart": "gelu"}


@dataclass(frozen=True)
class FairseqSettings:
    """fairseq's settings; a side's may be prefixed ("encoder_layers") or grouped ("encoder": {"layers": ...})."""

    values: Mapping[str, Any]

    def get(self, *names: str) -> Any:
        """The value of the first of these settings that is set, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def both(self, name: str) -> Any:
        """The value of a setting that encoder and decoder must share, or None if it is not set.

        Raises:
          ConvertError: they differ.
        """
        encoder, decoder = (self._of(side, name) for side in ("encoder", "decoder"))
        if encoder is not None and decoder is not None and encoder != decoder:
            raise ConvertError(
                f"encoder_{name} is {encoder!r} but decoder_{name} is {decoder!r}: encoder and decoder must have the same value"
            )
        return encoder if encoder is not None else decoder

    def _of(self, side: str, name: str) -> Any:
        group = self.values.get(side)
        grouped = group.get(name) if isinstance(group, Mapping) else None
        return self.values.get(f"{side}_{name}", grouped)

    def layers(self, side: str) -> int | None:
        """Number of layers of a side, or None if it is not set."""
        value = self._of(side, "layers")
        return None if value is None else whole(value, f"{side}_layers")


def settings_of(state: Mapping[str, Any]) -> FairseqSettings:
    """The model's settings in a fairseq checkpoint; empty if it holds none."""
    if state.get("args") is not None:
        args = pickles.plain(state["args"])
        if not isinstance(args, Mapping):
            raise ConvertError(f"args is {shown(args)}, not settings by name: damaged or foreign checkpoint")
        return FairseqSettings(args)
    cfg = pickles.plain(state.get("cfg"))
    if not isinstance(cfg, Mapping):
        return FairseqSettings({})
    model, task = (cfg[group] if isinstance(cfg.get(group), Mapping) else {} for group in ("model", "task"))
    # The languages of a multilingual BART are a setting of its task.
    return FairseqSettings({**model, **({"langs": task["langs"]} if task.get("langs") else {})})


def architecture(
    arrays: Mapping[str, np.ndarray], settings: FairseqSettings, heads: int | None, report: Report
) -> tuple[ModelConfig, Family]:
    """The architecture and the family of a fairseq model, from its tensors and settings.

    Args:
      arrays: tensors by released name.
      settings: settings of the checkpoint; may be empty.
      heads: the user's number of heads; overrides the settings.
      report: receives a note of every assumption.

    Raises:
      ConvertError: the number of heads is unknown, or janus_jax has no such architecture.
    """
    check_matrices(arrays, (SHARED, "encoder.layers.0.fc1.weight", "decoder.embed_positions.weight"))
    check_matrices(arrays, (LENGTHS,) if LENGTHS in arrays else ())
    family = _family(arrays)
    if family != "translation" and (languages := settings.get("langs")):
        raise ConvertError(
            f"langs is {shown(languages)}: a multilingual BART, whose sentences end and start with language codes (rows "
            "of the embedding that dict.txt does not list); only a BART without such codes is imported"
        )
    vocab_size, d_model = arrays[SHARED].shape
    positions = arrays["decoder.embed_positions.weight"].shape[0] - 2
    ffn_dim = settings.both("ffn_embed_dim")
    common = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "ffn_dim": arrays["encoder.layers.0.fc1.weight"].shape[0]
        if ffn_dim is None
        else whole(ffn_dim, "ffn_embed_dim"),
        "heads": _heads(settings, heads, d_model),
        "encoder_layers": settings.layers("encoder") or count_layers(arrays, "encoder"),
        "decoder_layers": settings.layers("decoder") or count_layers(arrays, "decoder"),
        "max_positions": positions,
        "length_classes": arrays[LENGTHS].shape[0] if LENGTHS in arrays else min(positions, 1024),
        "norm": _norm(arrays, settings),
        "activation": _activation(settings, family),
        "scale_embedding": _scaled(settings, family),
        "layernorm_embedding": family != "translation",
        **_dropouts(settings, report),
    }
    learned = settings.both("learned_pos")
    if learned is not None and not flag(learned, "learned_pos"):
        raise ConvertError(
            "its positions are sinusoidal (encoder_learned_pos is false); only learned positions are supported"
        )
    if family == "translation":
        return ModelConfig(**common, ar_slot_position="input", mask_token="unk"), family
    if family == "pretraining":
        return ModelConfig(**common, nar_layernorm_embedding=False, ar_start="eos", mask_token="unk"), family
    return ModelConfig(**common, ar_start="eos", ar_stream="content"), family


def namespace(config: Config, model: ModelConfig) -> argparse.Namespace:
    """The `args` of a fairseq checkpoint of this model, with the names that the released code registers."""
    bart = model.layernorm_embedding
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "embed_path": None,
            "embed_dim": model.d_model,
            "ffn_embed_dim": model.ffn_dim,
            "layers": getattr(model, f"{side}_layers"),
            "attention_heads": model.heads,
            "normalize_before": model.norm == "pre",
            "learned_pos": True,
            "layerdrop": 0.0,
            "layers_to_keep": None,
        }.items()
    }
    return argparse.Namespace(
        arch="janus_bart_base" if bart else "janus_transformer",
        task="janus_denoising" if bart else "janus_translation",
        source_lang=config.data.source_lang,
        target_lang=config.data.target_lang,
        **sides,
        decoder_output_dim=model.d_model,
        decoder_input_dim=model.d_model,
        max_source_positions=model.max_positions,
        max_target_positions=model.max_positions,
        activation_fn=model.activation,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        activation_dropout=model.activation_dropout,
        layernorm_embedding=model.layernorm_embedding,
        no_scale_embedding=not model.scale_embedding,
        share_all_embeddings=True,
        share_decoder_input_output_embed=True,
        no_token_positional_embeddings=False,
        no_cross_attention=False,
        cross_self_attention=False,
        adaptive_input=False,
        adaptive_softmax_cutoff=None,
        adaptive_softmax_dropout=0,
        tie_adaptive_weights=False,
        quant_noise_pq=0.0,
        quant_noise_pq_block_size=8,
        quant_noise_scalar=0.0,
        apply_bert_init=True,
        relu_dropout=0.0,
        pooler_activation_fn="tanh",
        pooler_dropout=0.0,
    )


def _family(arrays: Mapping[str, np.ndarray]) -> Family:
    normalised = "encoder.layernorm_embedding.weight" in arrays
    if LENGTHS in arrays:
        return "pretraining" if normalised else "translation"
    if normalised:
        return "bart"
    raise ConvertError(
        f"neither {LENGTHS} nor encoder.layernorm_embedding.weight: a plain fairseq Transformer, whose sources and targets have "
        "no bos, or a truncated checkpoint; only JANUS and BART models are imported"
    )


def _heads(settings: FairseqSettings, heads: int | None, d_model: int) -> int:
    recorded = settings.both("attention_heads")
    if heads is None and recorded is None:
        raise ConvertError("the checkpoint does not record its number of attention heads; give it with --heads")
    count = whole(recorded, "attention_heads") if heads is None else heads
    if d_model % count:
        raise ConvertError(f"--heads: {count} heads do not divide the width {d_model}")
    return count


def _norm(arrays: Mapping[str, np.ndarray], settings: FairseqSettings) -> str:
    pre = "encoder.layer_norm.weight" in arrays
    recorded = settings.both("normalize_before")
    if recorded is not None and flag(recorded, "normalize_before") != pre:
        state = "there" if pre else "missing"
        raise ConvertError(
            f"encoder_normalize_before is {recorded} but encoder.layer_norm.weight is {state}: truncated or foreign checkpoint"
        )
    return "pre" if pre else "post"


def _activation(settings: FairseqSettings, family: Family) -> str:
    recorded = settings.get("activation_fn")
    if recorded is None:
        recorded = _ACTIVATION_OF[family]
    if not isinstance(recorded, str) or recorded not in _ACTIVATIONS:
        raise ConvertError(f"activation_fn {shown(recorded)} is not supported; choose from {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[recorded]


def _scaled(settings: FairseqSettings, family: Family) -> bool:
    unscaled = settings.get("no_scale_embedding")
    return family == "translation" if unscaled is None else not flag(unscaled, "no_scale_embedding")


def _dropouts(settings: FairseqSettings, report: Report) -> dict[str, float]:
    if not settings.values:
        report.notes.append(
            "no settings in the checkpoint: activation and scale are those of its family, dropout is 0.1"
        )
        return {"dropout": 0.1}
    return {
        "dropout": _rate(settings, 0.1, "dropout"),
        "attention_dropout": _rate(settings, 0.0, "attention_dropout"),
        "activation_dropout": _rate(settings, 0.0, "activation_dropout", "relu_dropout"),
    }


def _rate(settings: FairseqSettings, default: float, *names: str) -> float:
    value = settings.get(*names)
    return default if value is None else rate(value, names[0])
