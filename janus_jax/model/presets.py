"""Published architectures by name, for experiments and imports.

Sizes are those of Lewis et al. 2020 (BART); vocabulary and special ids (bos 0, pad 1, eos 2, unk 3, mask 50264) those of
the published checkpoints.
"""

import dataclasses
from typing import Any

from janus_jax.config import ModelConfig

# What every BART has: learned positions, exact GELU, layer norm behind the embeddings, eos as the decoder's first token.
_BART = ModelConfig(
    vocab_size=50_265,
    max_positions=1024,
    norm="post",
    activation="gelu",
    scale_embedding=False,
    layernorm_embedding=True,
    ar_start="eos",
    ar_slot_position="target",
    dropout=0.1,
    attention_dropout=0.1,
)


def _bart(d_model: int, ffn_dim: int, heads: int, layers: int, **changes: Any) -> ModelConfig:
    sizes = {"d_model": d_model, "ffn_dim": ffn_dim, "heads": heads}
    return dataclasses.replace(_BART, **sizes, encoder_layers=layers, decoder_layers=layers, **changes)


PRESETS: dict[str, ModelConfig] = {
    "bart_base": _bart(768, 3072, 12, 6),
    "bart_large": _bart(1024, 4096, 16, 12),
    # For two CPU cores; the vocabulary is its tokenizer's.
    "bart_tiny": _bart(128, 512, 4, 3, vocab_size=0, max_positions=512),
    # For tests.
    "bart_mini": _bart(32, 64, 4, 2, vocab_size=0, max_positions=64, length_classes=64, dtype="float32"),
}
