"""fairseq's dict.txt: a word and a count a line, in the order of the ids that follow the special tokens."""

from janus_jax.text.tokenizer import TokenizerError

_FLAG = " #fairseq:overwrite"


def words(data: bytes, origin: str) -> list[str]:
    """The words of a dict.txt, in order; a word repeats only where a line's flag allows it.

    Raises:
      TokenizerError: not UTF-8, not lines of a word and a count, or a word that is there twice without the flag.
    """
    try:
        lines = data.decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{origin}: not UTF-8 text ({error}); give fairseq's dict.txt") from error
    found: dict[str, None] = {}
    every = []
    for number, line in enumerate(lines, 1):
        plain = line.rstrip("\r")
        allowed = plain.endswith(_FLAG)
        word, _, count = plain.removesuffix(_FLAG).rpartition(" ")
        if not word or not count.lstrip("-").isdecimal():
            raise TokenizerError(
                f"{origin} line {number}: {line[:60]!r} is not a word and a count, as in fairseq's dict.txt"
            )
        if word in found and not allowed:
            raise TokenizerError(
                f"{origin} line {number}: {word!r} is there twice; end the line with '{_FLAG.strip()}' if so meant"
            )
        found[word] = None
        every.append(word)
    return every
