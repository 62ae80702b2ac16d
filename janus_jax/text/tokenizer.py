"""The interface of a tokenizer.

Every tokenizer puts the five special tokens first (`types.Specials`), so that models and searches need not ask.
"""

from collections.abc import Sequence
from typing import Protocol

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

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it, a leading space shown as U+2581; for looking at."""
        ...

    def to_bytes(self) -> bytes:
        """Everything that `text.load` needs to build the same tokenizer again."""
        ...
