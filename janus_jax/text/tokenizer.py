"""The interface of a tokenizer.

In every tokenizer bos, pad, eos and unk are the tokens 0 to 3, in this order; the mask is `specials.mask`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from janus_jax.types import Specials

FIRST = ("<s>", "<pad>", "</s>", "<unk>")  # the tokens 0 to 3, as vocabularies write them
MASK = "<mask>"


class TokenizerError(ValueError):
    """A tokenizer cannot be trained or read; the message names the fix."""


class Tokenizer(Protocol):
    """Text to token ids and back; no call changes its state."""

    specials: Specials
    vocab_size: int  # special tokens counted

    def encode(self, line: str) -> list[int]:
        """Token ids of one line, without bos and eos."""
        ...

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of text that follows other text without a space: no sign of a new word is put before it."""
        ...

    def encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of many lines, in their order.

        Raises:
          TypeError: a plain string in place of a list of lines.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Detokenised text; bos, pad, eos and mask are skipped at every position, unk becomes a visible symbol."""
        ...

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Detokenised text of many token sequences, in their order."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it, a leading space shown as U+2581; for display."""
        ...

    def word_starts(self) -> np.ndarray:
        """[vocab_size] bool: True where a token begins a word; special tokens have True.

        The flag depends on the token alone. In byte-level BPE the first word of a line has no leading space, so its
        token may have False here: the caller must set the first token of a line itself.
        """
        ...

    def to_bytes(self) -> bytes:
        """The bytes from which `text.load` builds the same tokenizer."""
        ...


def list_of_texts(name: str, texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises:
      TypeError: a plain string, whose letters would be taken for texts, or something else than texts.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name}: {texts[:40]!r} is a plain string; pass a list of texts, [{texts[:40]!r}]")
    texts = list(texts)
    for i, one in enumerate(texts):
        if not isinstance(one, str):
            raise TypeError(f"{name}[{i}]: {one!r:.60} is no text; pass a list of texts")
    return texts


def checked_ids(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """`ids` as a flat int64 array.

    Raises:
      TokenizerError: one of them lies outside the vocabulary.
    """
    flat = np.asarray(ids, np.int64).reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() >= vocab_size):
        bad = flat[(flat < 0) | (flat >= vocab_size)][0]
        raise TokenizerError(
            f"token id {bad} lies outside the vocabulary of {vocab_size}; was this text encoded with another tokenizer?"
        )
    return flat
