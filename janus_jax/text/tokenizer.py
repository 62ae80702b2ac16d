"""The interface of a tokenizer, and how to get one: `train` it on text or `load` it from bytes.

Every tokenizer puts the five special tokens first (`types.Specials`), so that models and searches need not ask.
"""

from collections.abc import Sequence
from typing import Protocol

from janus_jax.config import TextConfig
from janus_jax.types import Specials


class TokenizerError(ValueError):
    """A tokenizer cannot be trained or read; the message names the fix."""


class Tokenizer(Protocol):
    """Text to token ids and back; holds no state that a call changes."""

    specials: Specials
    vocab_size: int  # special tokens counted

    def encode(self, line: str) -> list[int]:
        """Token ids of one line, without bos and eos."""
        ...

    def encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of many lines, in their order."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Detokenised text; bos, pad, eos and mask are skipped wherever they stand, unk shows as a visible sign."""
        ...

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Detokenised text of many token sequences, in their order."""
        ...

    def to_bytes(self) -> bytes:
        """Everything that `load` needs to build the same tokenizer again."""
        ...


def train(lines: Sequence[str], config: TextConfig) -> Tokenizer:
    """Trains a SentencePiece tokenizer on `lines`, or reads the given model (`config.model`), which needs no lines.

    Args:
      lines: text, both languages; at most `config.train_lines` of them are used, evenly spread.
      config: the tokenizer's settings.

    Raises:
      TokenizerError: the text is too small for the vocabulary, or the given model cannot be read.
    """
    from janus_jax.text import sentencepiece_tokenizer as implementation

    if config.model:
        return implementation.read(config.model)
    return implementation.train(lines, config)


def load(data: bytes) -> Tokenizer:
    """The tokenizer whose `to_bytes` gave `data`, or that of a SentencePiece model file's content.

    Raises:
      TokenizerError: `data` is not a SentencePiece model.
    """
    from janus_jax.text import sentencepiece_tokenizer as implementation

    return implementation.SentencePieceTokenizer(data)
