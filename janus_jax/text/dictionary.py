"""fairseq's dict.txt: a word and a count per line, in the order of the ids after the special tokens."""

from janus_jax.text.tokenizer import TokenizerError

_FLAG = " #fairseq:overwrite"


def read_words(data: bytes, origin: str) -> list[str]:
    """The words of a dict.txt, in order; a word may be repeated only where the flag of its line allows it.

    Args:
      data: content of the file.
      origin: name of the file, for messages.

    Raises:
      TokenizerError: not UTF-8, not lines of a word and a count, or a word that is repeated without the flag.
    """
    try:
        lines = data.decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{origin}: not UTF-8 text ({error}); give fairseq's dict.txt") from error
    words: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        plain = line.rstrip("\r")
        allowed = plain.endswith(_FLAG)
        word, _, count = plain.removesuffix(_FLAG).rpartition(" ")
        if not word or not count.lstrip("-").isdecimal():
            raise TokenizerError(
                f"{origin} line {number}: {line[:60]!r} is not a word and a count, as in fairseq's dict.txt"
            )
        if word in seen and not allowed:
            raise TokenizerError(
                f"{origin} line {number}: {word!r} is there twice; end the line with '{_FLAG.strip()}' if that is intended"
            )
        seen.add(word)
        words.append(word)
    return words
