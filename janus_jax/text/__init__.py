"""Tokenizers: `train` one on text, or `load` one from bytes."""

from collections.abc import Sequence

from janus_jax.config import TextConfig
from janus_jax.text import sentencepiece_tokenizer
from janus_jax.text.tokenizer import Tokenizer, TokenizerError

__all__ = ["Tokenizer", "TokenizerError", "load", "train"]


def train(lines: Sequence[str], config: TextConfig) -> Tokenizer:
    """Trains a SentencePiece tokenizer on `lines`, or reads the given model (`config.model`), which needs no lines.

    Args:
      lines: text, both languages; at most `config.train_lines` of them are used, evenly spread.
      config: the tokenizer's settings.

    Raises:
      TokenizerError: the text is too small for the vocabulary, or the given model cannot be read.
    """
    if config.model:
        return sentencepiece_tokenizer.read(config.model)
    return sentencepiece_tokenizer.train(lines, config)


def load(data: bytes) -> Tokenizer:
    """The tokenizer whose `to_bytes` gave `data`, or that of a SentencePiece model file's content.

    Raises:
      TokenizerError: `data` is not a SentencePiece model.
    """
    return sentencepiece_tokenizer.SentencePieceTokenizer(data)
