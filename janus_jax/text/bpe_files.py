"""Converts the files in which byte-level BPE tokenizers are published to the form of a tokenizer.json."""

import json
import pathlib
from typing import Any

from janus_jax.text import dictionary
from janus_jax.text.tokenizer import FIRST, MASK, TokenizerError

# The layouts of a folder; the first that is complete counts.
_WHOLE = ("tokenizer.json",)
_HUGGING_FACE = ("vocab.json", "merges.txt")
_ADDED = "added_tokens.json"  # may be beside them
_FAIRSEQ = ("dict.txt", "encoder.json", "vocab.bpe")


def _alphabet() -> dict[str, int]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# How the vocabulary of GPT-2 writes a byte: as the character of Latin-1 if that is printable, else as the next free character from
# U+0100.
BYTES = _alphabet()


def tokenizer_json(path: pathlib.Path) -> bytes:
    """The content of a tokenizer.json: of the file itself, or built from the files of a folder.

    A folder holds tokenizer.json, or vocab.json and merges.txt and perhaps added_tokens.json (Hugging Face), or
    dict.txt, encoder.json and vocab.bpe (fairseq's BART: a line of dict.txt is GPT-2's id of a token and a count; our
    ids are those lines' order).

    Raises:
      TokenizerError: files are absent or broken; the message names them.
    """
    if not path.is_dir():
        return _read(path)
    layouts = (_WHOLE, _HUGGING_FACE, _FAIRSEQ)
    for layout in layouts:
        if all((path / name).is_file() for name in layout):
            break
    else:
        wanted = "; or ".join(" and ".join(layout) for layout in layouts)
        content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise TokenizerError(f"the folder {str(path)!r} must hold {wanted}; it holds {content}")
    if layout == _WHOLE:
        return _read(path / "tokenizer.json")
    vocab = _vocab(path / "vocab.json") if layout == _HUGGING_FACE else _fairseq_vocab(path)
    further = _further_tokens(path / _ADDED, vocab) if layout == _HUGGING_FACE else {}
    merges = _merges(path / layout[-1], vocab)
    return json.dumps(tokenizer_fields(vocab, merges, further)).encode()


def tokenizer_fields(
    vocab: dict[str, int], merges: list[tuple[str, str]], further: dict[str, int] | None = None
) -> dict[str, Any]:
    """The fields of a tokenizer.json for byte-level BPE.

    Args:
      vocab: token -> id.
      merges: pairs of tokens by rank.
      further: token -> id of tokens that were added to the vocabulary.
    """
    further = further or {}
    added = [added_token(token, vocab[token]) for token in (*FIRST, MASK) if token in vocab and token not in further]
    added += [added_token(token, number) for token, number in further.items()]
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": None,
        "decoder": bytewise,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def added_token(token: str, number: int) -> dict[str, Any]:
    """A token's entry in `added_tokens`; as in BART, `<mask>` includes the space before it."""
    marks = {"single_word": False, "lstrip": token == MASK, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **marks, "special": token in (*FIRST, MASK)}


def _fairseq_vocab(folder: pathlib.Path) -> dict[str, int]:
    """Token -> id from fairseq's dict.txt and GPT-2's encoder.json."""
    names = {str(number): token for token, number in _vocab(folder / "encoder.json").items()}
    path = folder / "dict.txt"
    words = dictionary.read_words(_read(path), repr(str(path)))
    vocab = {token: number for number, token in enumerate(FIRST)}
    for word in words:
        # Fillers ("madeupword0000") and special tokens are not ids of GPT-2: they stay as they are.
        token = names.get(word, word)
        if word.isdecimal() and word not in names:
            raise TokenizerError(f"{str(path)!r} has {word!r}, which is not an id in encoder.json")
        if token in vocab:
            raise TokenizerError(f"{str(path)!r} has {word!r} twice")
        vocab[token] = len(vocab)
    if absent := sorted(set(names) - set(words), key=int):
        raise TokenizerError(
            f"{str(path)!r} lacks {len(absent)} of encoder.json's tokens, the first {absent[0]!r}; "
            "take both files from one model"
        )
    vocab.setdefault(MASK, len(vocab))
    return vocab


def _vocab(path: pathlib.Path) -> dict[str, int]:
    try:
        vocab = json.loads(_read(path))
    except ValueError as error:
        raise TokenizerError(f"{str(path)!r} is not JSON ({error})") from error
    if not isinstance(vocab, dict) or not all(isinstance(number, int) for number in vocab.values()):
        raise TokenizerError(f"{str(path)!r} must be a JSON object of tokens and their ids")
    return vocab


def _further_tokens(path: pathlib.Path, vocab: dict[str, int]) -> dict[str, int]:
    """Token -> id from added_tokens.json, which slow tokenizers of transformers write beside vocab.json."""
    if not path.is_file():
        return {}
    further = {token: number for token, number in _vocab(path).items() if vocab.get(token) != number}
    for expected, token in enumerate(sorted(further, key=lambda token: further[token]), len(vocab)):
        if token in vocab:
            raise TokenizerError(
                f"{str(path)!r} has {token!r} as {further[token]}, but vocab.json as {vocab[token]}; take both files "
                "from one model"
            )
        if further[token] != expected:
            raise TokenizerError(
                f"{str(path)!r} has {token!r} as {further[token]}, but the next free id is {expected}: added tokens "
                f"must follow the {len(vocab)} tokens of vocab.json without gaps; take both files from one model"
            )
    return further


def _merges(path: pathlib.Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens by rank: one per line, after a first line with the version of the format."""
    try:
        lines = _read(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{str(path)!r} is not UTF-8 text ({error})") from error
    first = int(lines[0].startswith("#version"))
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        pair = line.split()
        if not pair:
            continue
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise TokenizerError(f"{str(path)!r} line {number}: {line!r} is not a pair of tokens of the vocabulary")
        merges.append((pair[0], pair[1]))
    return merges


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot read {str(path)!r} ({error.strerror}); name a tokenizer.json, or a folder with "
            "vocab.json and merges.txt"
        ) from error
