"""A dictionary of words, for text that is already tokenized: that of a fairseq model, or one of the words of a text."""

import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from janus_jax.config import TextConfig
from janus_jax.text import dictionary
from janus_jax.text.tokenizer import FIRST, MASK, TokenizerError, checked_ids, list_of_texts
from janus_jax.types import Specials

HEADER = b"#janus_jax fairseq dictionary\n"  # distinguishes `to_bytes` from that of other tokenizers
_UNKNOWN = "\u2047"
_JOINT = "@@ "  # after a subword that is not its word's last, as subword-nmt writes it


class DictionaryTokenizer:
    """White space separates the tokens; ids 0 to 3 are `<s> <pad> </s> <unk>`, then the words in dict.txt's order.

    A word outside the dictionary is unk. Such models have no mask token: unless dict.txt has `<mask>`, unk is also the mask
    (`specials.mask` is 3). The text must be tokenized like the training data of the model. A special token that the text
    spells is unk, `<mask>` too. Only where dict.txt lists `<s>`, `<pad>`, `</s>` or `<unk>` as a word is it that word.

    Args:
      data: the content of a dict.txt, or the result of `to_bytes`.

    Raises:
      TokenizerError: not lines of a word and a count.
    """

    def __init__(self, data: bytes, origin: str = "tokenizer data"):
        self._data = data.removeprefix(HEADER)
        self.words = [*FIRST, *dictionary.read_words(self._data, origin)]
        first = len(FIRST)
        # Of a repeated word the last line counts, as in fairseq.
        self._ids = {word: number for number, word in enumerate(self.words[first:], first)}
        self.specials = Specials(mask=self._ids.pop(MASK, Specials.unk))
        self.vocab_size = len(self.words)

    def encode(self, line: str) -> list[int]:
        """Token ids of one line, without bos and eos."""
        return [self._ids.get(word, self.specials.unk) for word in line.split()]

    def encode_inside(self, text: str) -> list[int]:
        """As `encode`: no sign of a new word is put before text."""
        return self.encode(text)

    def encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of many lines, in their order."""
        return [self.encode(line) for line in list_of_texts("lines", lines)]

    def decode(self, ids: Sequence[int]) -> str:
        """Words joined by spaces and from their subwords; bos, pad, eos and mask are skipped, unk becomes U+2047.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        skipped = set(vars(self.specials).values()) - {self.specials.unk}
        numbers = [i for i in checked_ids(ids, self.vocab_size).tolist() if i not in skipped]
        words = [_UNKNOWN if i == self.specials.unk else self.words[i] for i in numbers]
        return (" ".join(words) + " ").replace(_JOINT, "").rstrip(" ")

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of many token sequences, in their order."""
        return [self.decode(row) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as dict.txt writes it; special tokens in angle brackets."""
        names = {number: f"<{name}>" for name, number in reversed(vars(self.specials).items())}  # unk rather than mask
        return [names.get(int(i)) or self.words[int(i)] for i in ids]

    def word_starts(self) -> np.ndarray:
        """[vocab_size] bool, all True: only the token before it ("@@") shows whether a token continues a word."""
        return np.ones(self.vocab_size, bool)

    def to_bytes(self) -> bytes:
        """A line that names the format, then the content of dict.txt."""
        return HEADER + self._data


def read(path: str | pathlib.Path) -> DictionaryTokenizer:
    """Reads fairseq's dict.txt.

    Raises:
      TokenizerError: no such file, or not lines of a word and a count.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {str(path)!r} ({error.strerror}); name fairseq's dict.txt") from error
    return DictionaryTokenizer(data, repr(str(path)))


def train(lines: Sequence[str], config: TextConfig) -> DictionaryTokenizer:
    """A dictionary with `<mask>` and the most frequent words of the lines, at most `config.vocab_size` tokens.

    Words of one frequency are in the order of the alphabet, so that the same lines give the same dictionary.

    Raises:
      TokenizerError: no text.
    """
    count = min(len(lines), config.train_lines)
    counts = Counter(word for i in range(count) for word in lines[i * len(lines) // count].split())
    for name in (*FIRST, MASK):
        del counts[name]  # a special token that the text spells is unknown
    if not counts:
        raise TokenizerError("no text to train a tokenizer on; check the training split")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: config.vocab_size - len(FIRST) - 1]
    return DictionaryTokenizer("".join(f"{word} {n}\n" for word, n in [(MASK, 0), *ranked]).encode())
