"""Tokenizers: `train` one on text, `read` an existing one from files, or `load` one from bytes."""

import pathlib
from collections.abc import Sequence

from janus_jax.config import TextConfig
from janus_jax.text import bpe_tokenizer, dictionary_tokenizer, sentencepiece_tokenizer
from janus_jax.text.bpe_tokenizer import BpeTokenizer
from janus_jax.text.dictionary_tokenizer import DictionaryTokenizer
from janus_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer
from janus_jax.text.tokenizer import Tokenizer, TokenizerError, list_of_texts

__all__ = [
    "BpeTokenizer",
    "DictionaryTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "TokenizerError",
    "list_of_texts",
    "load",
    "read",
    "train",
]


def train(lines: Sequence[str], config: TextConfig) -> Tokenizer:
    """Trains a tokenizer of kind `config.model_type` on `lines`, or reads an existing one (`config.model`; `lines` is not used).

    Args:
      lines: text of both languages; at most `config.train_lines` of them are used, evenly spread.
      config: the tokenizer's settings.

    Raises:
      TokenizerError: there is no text, its characters need a larger vocabulary, or the existing tokenizer cannot be read.
    """
    if config.model:
        return read(config.model)
    if config.model_type == "byte_bpe":
        return bpe_tokenizer.train(lines, config)
    if config.model_type == "word":
        return dictionary_tokenizer.train(lines, config)
    return sentencepiece_tokenizer.train(lines, config)


def read(path: str | pathlib.Path, name: str = "config.text.model") -> Tokenizer:
    """Reads a tokenizer from files; the kind follows from `path`.

    Args:
      path: a folder or a .json file: byte-level BPE (`bpe_tokenizer.read`); a .txt file: fairseq's dict.txt, for text that
        is already tokenized; any other file: a SentencePiece model.
      name: of the setting or flag that gave the path, for messages.

    Raises:
      TokenizerError: files are absent or broken; the message names them.
    """
    path = pathlib.Path(path)
    reader = sentencepiece_tokenizer.read
    if path.is_dir() or path.suffix == ".json":
        reader = bpe_tokenizer.read
    elif path.suffix == ".txt":
        reader = dictionary_tokenizer.read
    try:
        return reader(path)
    except TokenizerError as error:
        raise TokenizerError(f"{name}: {error}") from error


def load(data: bytes, origin: str = "tokenizer data") -> Tokenizer:
    """The tokenizer of `data`: the result of `to_bytes`, or the content of a SentencePiece model file.

    Args:
      data: its bytes.
      origin: where they are from, for messages.

    Raises:
      TokenizerError: `data` is none of the three kinds.
    """
    if data.startswith(b"{"):
        return BpeTokenizer(data, origin)
    if data.startswith(dictionary_tokenizer.HEADER):
        return DictionaryTokenizer(data, origin)
    return SentencePieceTokenizer(data, origin)
