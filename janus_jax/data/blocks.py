"""Documents to blocks: splits documents into sentences, tokenizes them and packs them whole into blocks of at most L tokens.

Legend: L tokens of a block (bos and eos counted), N blocks.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from janus_jax.data.shards import Example
from janus_jax.text import Tokenizer

# After a full stop with its closing quotes or brackets, before white space and what is no small letter; or after a CJK one.
_END = re.compile(r"(?<=[.!?])(?=\s+[^\sa-zß-öø-ÿ])|(?<=[.!?][\"'”’)\]])(?=\s+[^\sa-zß-öø-ÿ])|(?<=[。！？])(?=.)")  # noqa: RUF001
_DOCUMENTS = 1024  # tokenized at once


def sentences_of(document: str) -> list[str]:
    """Splits a document into sentences; joined they give the document: each but the first keeps the space before it.

    >>> "One. Two (2.5)! and so on." -> ["One.", " Two (2.5)! and so on."]
    """
    return [piece for piece in _END.split(document) if piece.strip()]


def pack(documents: Iterable[str], tokenizer: Tokenizer, length: int) -> Iterator[Example]:
    """Packs documents, one after another, into blocks.

    A sentence that does not fit into the rest of a block starts the next block. Only a sentence longer than a block is cut. A block
    may hold the end of a document and the beginning of the next.

    Args:
      documents: their texts.
      tokenizer: of the blocks.
      length: L.

    Returns:
      Examples: "target" [at most L] int32, bos ... eos, and "sentences" [n] int32, where sentences start in it.
    """
    special, limit = tokenizer.specials, length - 2
    tokens: list[int] = []
    starts: list[int] = []

    def block() -> Example:
        return {
            "target": np.array([special.bos, *tokens, special.eos], np.int32),
            "sentences": np.array(starts, np.int32),
        }

    for sentence in _tokenized(documents, tokenizer):
        for first in range(0, len(sentence), limit):
            piece = sentence[first : first + limit]
            if len(tokens) + len(piece) > limit:
                yield block()
                tokens, starts = [], []
            starts.append(len(tokens) + 1)
            tokens += piece
    if tokens:
        yield block()


def _tokenized(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    waiting: list[str] = []
    inside: list[int] = []  # sentences of `waiting` that follow another one without a space, as in Chinese

    def encoded() -> Iterator[list[int]]:
        ids = tokenizer.encode_batch(waiting)
        for i in inside:
            ids[i] = tokenizer.encode_inside(waiting[i])
        return filter(None, ids)

    for count, document in enumerate(documents, 1):
        for number, sentence in enumerate(sentences_of(document)):
            if number and not sentence[0].isspace():
                inside.append(len(waiting))
            waiting.append(sentence)
        if count % _DOCUMENTS == 0:
            yield from encoded()
            waiting, inside = [], []
    yield from encoded()
