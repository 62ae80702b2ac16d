"""Byte-level BPE tokenizers (GPT-2, BART) by the `tokenizers` library: trained here, or published."""

import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from janus_jax.config import TextConfig
from janus_jax.text import bpe_files
from janus_jax.text.tokenizer import FIRST, MASK, TokenizerError, checked_ids, list_of_texts
from janus_jax.types import Specials

_MIN_VOCAB = 256 + len(FIRST) + 1  # every byte and the special tokens
_UNKNOWN = " \u2047 ".encode()  # as SentencePiece shows it
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}  # a decoder that takes one space off the front


class BpeTokenizer:
    """A byte-level BPE tokenizer with the ids of its tokenizer.json. It encodes any text, and decoding restores the text.

    `<s>`, `<pad>`, `</s>`, `<unk>` must be tokens 0 to 3, as in BART; `<mask>` may be any token. One of these five
    that the text spells is encoded as text. Any other added token (`<hl>` of a fine-tuned BART, say) is one token where
    the text spells it, and decoding shows it. Truncation, padding and post-processor of the file are ignored. Where a
    file adds tokens that take the space before them, or puts a space before each text, decoding may differ from the text by
    spaces beside added tokens.

    Args:
      data: the content of a tokenizer.json file.
      origin: where it is from, for messages.
      foreign: another program wrote it, which may have marked the tokens that it added as special.

    Raises:
      TokenizerError: not the JSON of a byte-level BPE tokenizer, or special tokens are absent or have other ids.
    """

    def __init__(self, data: bytes, origin: str = "tokenizer data", *, foreign: bool = False):
        try:
            fields = json.loads(data)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_without_extras(fields, foreign)))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{origin}: not a tokenizer.json of the tokenizers library ({type(error).__name__}: {error})"
            ) from error
        decoder = self._tokenizer.decoder
        if not isinstance(self._tokenizer.model, tokenizers.models.BPE) or not isinstance(
            decoder, tokenizers.decoders.ByteLevel
        ):
            raise TokenizerError(
                f"{origin}: its model is {type(self._tokenizer.model).__name__} and its decoder {type(decoder).__name__}; "
                "only byte-level BPE (model BPE, decoder ByteLevel) is read from a tokenizer.json"
            )
        self.prefixed = _without_prefix(fields) != fields  # a space is put before each text
        tokens = self._tokenizer.get_vocab(with_added_tokens=True)
        self.specials = _specials(tokens, fields, origin)
        self._tokenizer.encode_special_tokens = True  # encodes them as text
        self.vocab_size = max(tokens.values()) + 1
        special, spelled = set(vars(self.specials).values()), fields["model"]["vocab"]
        self._bytes = [b""] * self.vocab_size  # of each token in decoded text
        self._names = ["<unused>"] * self.vocab_size
        for token, number in tokens.items():
            # A token outside the model's vocabulary is an added one: its own text.
            text = _token_bytes(token) if token in spelled else token.encode()
            self._bytes[number] = b"" if number in special else text
            self._names[number] = _display(self._bytes[number])
        for name, number in vars(self.specials).items():
            self._names[number] = f"<{name}>"
        self._bytes[self.specials.unk] = _UNKNOWN

    def encode(self, line: str) -> list[int]:
        """Token ids of one line, without bos and eos."""
        return self._tokenizer.encode(line, add_special_tokens=False).ids

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of text that follows other text: no space is put before it, also where `encode` puts one."""
        return self._inside.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        if not self.prefixed:
            return self._tokenizer
        inside = tokenizers.Tokenizer.from_str(json.dumps(_without_prefix(json.loads(self._tokenizer.to_str()))))
        inside.encode_special_tokens = True
        return inside

    def encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of many lines, in their order."""
        return [
            e.ids for e in self._tokenizer.encode_batch_fast(list_of_texts("lines", lines), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text, without bos, pad, eos and mask; unk becomes U+2047. A space that `encode` puts first is left out.

        Bytes that are not UTF-8 (a model may generate any) become U+FFFD.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        numbers = checked_ids(ids, self.vocab_size).tolist()
        text = b"".join([self._bytes[i] for i in numbers]).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.prefixed else text

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of many token sequences, in their order."""
        return [self.decode(row) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token's text, spaces shown as U+2581, parts of characters as `<0xC3>`; special tokens in angle brackets."""
        return [self._names[int(i)] for i in ids]

    def word_starts(self) -> np.ndarray:
        """[vocab_size] bool: the tokens that begin with a space, and the special ones.

        The first token of a line begins a word without a space before it: the caller must treat it.
        """
        starts = np.array([spelled.startswith(b" ") for spelled in self._bytes])
        starts[list(vars(self.specials).values())] = True
        return starts

    def to_bytes(self) -> bytes:
        """The tokenizer.json, without truncation, padding and post-processor."""
        return self._tokenizer.to_str().encode()

    def __reduce__(self) -> tuple[type["BpeTokenizer"], tuple[bytes]]:
        # A copy by the library's own state would encode special tokens that the text spells as such.
        return BpeTokenizer, (self.to_bytes(),)


def read(path: str | pathlib.Path) -> BpeTokenizer:
    """Reads a tokenizer.json, or a folder that holds one, or BART's files (Hugging Face's or fairseq's).

    Raises:
      TokenizerError: files are absent or broken; the message names them.
    """
    return BpeTokenizer(bpe_files.tokenizer_json(pathlib.Path(path)), repr(str(path)), foreign=True)


def train(lines: Sequence[str], config: TextConfig) -> BpeTokenizer:
    """Trains a byte-level BPE tokenizer: `<s> <pad> </s> <unk> <mask>`, the 256 bytes, then pairs by frequency.

    The same lines give the same tokenizer on any machine. A pair that occurs once does not become a token, so that the
    vocabulary of a small text is smaller than `config.vocab_size`.

    Raises:
      TokenizerError: there is no text, or the vocabulary is too small for the bytes.
    """
    if config.vocab_size < _MIN_VOCAB:
        raise TokenizerError(
            f"config.text.vocab_size: {config.vocab_size} does not hold the 256 bytes and the special tokens; raise it to at least {_MIN_VOCAB}"
        )
    count = min(len(lines), config.train_lines)
    if not count:
        raise TokenizerError("no text to train a tokenizer on; check the training split")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(bpe_files.tokenizer_fields({}, [])))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[*FIRST, tokenizers.AddedToken(MASK, lstrip=True)],
        initial_alphabet=list(bpe_files.BYTES),
        show_progress=False,
    )
    tokenizer.train_from_iterator((lines[i * len(lines) // count] for i in range(count)), trainer)
    return BpeTokenizer(tokenizer.to_str().encode())


def _without_extras(fields: dict[str, Any], foreign: bool) -> dict[str, Any]:
    """The fields of a tokenizer.json without those that change the ids of text; our five tokens are marked as special."""
    special = {*FIRST, MASK}
    # Text that spells a special token is encoded as text: the tokens that another program added must not be special. Tokenizers
    # that an older version has stored keep their marks, since its models were trained with them.
    added = [
        t | ({"special": t["content"] in special} if foreign or t["content"] in special else {})
        for t in fields.get("added_tokens") or []
    ]
    vocab = fields["model"]["vocab"]
    tokens = vocab if isinstance(vocab, dict) else {}
    names = {t["content"] for t in added}
    added += [bpe_files.added_token(name, tokens[name]) for name in special & set(tokens) - names]
    # With an unknown token set, a byte that the vocabulary lacks becomes unk; without one it would vanish.
    model = fields["model"] | {"dropout": None, "unk_token": "<unk>"}
    changed = {"truncation": None, "padding": None, "post_processor": None, "model": model}
    decoder = fields.get("decoder")
    if _without_prefix(fields) != fields and isinstance(decoder, dict) and decoder.get("decoders", [])[1:] == [_STRIP]:
        changed["decoder"] = decoder["decoders"][0]  # as `convert` writes it; `decode` strips by itself
    return fields | changed | {"added_tokens": sorted(added, key=lambda token: token["id"])}


def _without_prefix(part: Any) -> Any:
    """A part of a tokenizer.json in which no pre-tokenizer puts a space before text."""
    if isinstance(part, list):
        return [_without_prefix(one) for one in part]
    if not isinstance(part, dict):
        return part
    if "pre_tokenizer" in part:
        return part | {"pre_tokenizer": _without_prefix(part["pre_tokenizer"])}
    return {
        name: False if name == "add_prefix_space" else _without_prefix(value) if name == "pretokenizers" else value
        for name, value in part.items()
    }


def _specials(tokens: dict[str, int], fields: dict[str, Any], origin: str) -> Specials:
    """The ids of the special tokens; checks that loading has not changed the id of an added token."""
    if any(tokens.get(name) != number for number, name in enumerate(FIRST)):
        needed = ", ".join(f"{name} = {number}" for number, name in enumerate(FIRST))
        actual = ", ".join(f"{name} = {tokens.get(name, 'absent')}" for name in FIRST)
        raise TokenizerError(
            f"{origin}: special tokens must be {needed}, but here {actual}; use a tokenizer with these ids"
        )
    if MASK not in tokens:
        raise TokenizerError(f"{origin}: it has no {MASK} token; add one to its added_tokens and to the vocabulary")
    for token in fields.get("added_tokens") or []:
        if tokens.get(token["content"]) != token["id"]:
            raise TokenizerError(
                f"{origin}: its added token {token['content']!r} should be {token['id']} but would be "
                f"{tokens.get(token['content'])}; number the added tokens without gaps"
            )
    return Specials(mask=tokens[MASK])


def _token_bytes(token: str) -> bytes:
    """The bytes of a token; a token that is not written byte by byte is its own text."""
    try:
        return bytes(bpe_files.BYTES[character] for character in token)
    except KeyError:
        return token.encode()


def _display(spelled: bytes) -> str:
    try:
        return re.sub(" ", "\u2581", spelled.decode())
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in spelled)
