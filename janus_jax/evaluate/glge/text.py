"""Text of the GLGE tasks as the benchmark's scripts change it before they score it.

Source of the rules: the scripts under GLGE_baselines/script of github.com/microsoft/ProphetNet (evaluate/cnndm,
evaluate/gigaword, evaluate/qg), quirks included.
"""

import string

SENTENCE_END = "[X_SEP]"  # between the sentences of a cnndm prediction
REFERENCE_END = "<S_SEP>"  # between the sentences of a cnndm source or reference
# Names of brackets and other marks in tokenised text: of the news summaries, and of the questions and headlines.
UPPER_NAMES = dict(zip("()[]{}", ("-LRB-", "-RRB-", "-LSB-", "-RSB-", "-LCB-", "-RCB-"), strict=True))
LOWER_NAMES = {mark: name.lower() for mark, name in UPPER_NAMES.items()} | {
    "[UNK]": "UNK", "&": "&amp;", "<": "&lt;", ">": "&gt;",
}  # fmt: skip
_SHORTEST_SENTENCE = 5  # words; a shorter sentence of a cnndm summary is dropped
_MOST_REPEATED = 0.7  # share of a sentence's words that earlier sentences may have


def join_wordpieces(text: str) -> str:
    """Text in which pieces of words, marked by `##`, are joined."""
    return text.replace(" ##", "")


def repair_tokens(text: str, names: dict[str, str]) -> str:
    """Words that a tokenizer of BERT split, joined as in tokenised news: `don ' t` -> `do n't`, `3 . 03` -> `3.03`.

    A fault of the reference is kept: the last full stop of an abbreviation comes twice (`U . N .` -> `U.N. .`).

    Args:
      text: words separated by white space.
      names: what some marks become, for example `UPPER_NAMES`.
    """
    words, out = text.split(), []
    opened = {'"': False, "'": False}
    hyphenated = False  # the last word of `out` ends in a hyphen that the next word follows directly
    at = 0
    while at < len(words):
        word, after = words[at], [*words[at + 1 : at + 3], "", ""][:2]
        last = out[-1] if out else ""
        was_hyphenated, hyphenated, taken = hyphenated, False, 1
        if word in names:
            out.append(names[word])
        elif word == "'" and last.endswith("n") and after[0] == "t":
            out[-1:] = [last[:-1], "n't"]
            taken = 2
        elif word == "'" and after[0] in ("s", "d", "ll"):
            out.append(f"'{after[0]}")
            taken = 2
        elif word in opened:
            marks = ("``", "''") if word == '"' else ("`", "'")
            out.append(marks[opened[word]])
            opened[word] = not opened[word]
        elif [word, *after] == [".", ".", "."]:
            out.append("...")
            taken = 3
        elif word == "," and out and _number(last) and after[0] and _number(after[0]):
            out[-1] += f",{after[0]}"
            taken = 2
        elif word == "." and last.isdigit() and after[0].isdigit():
            out[-1] += f".{after[0]}"
            taken = 2
        elif word == "." and _initial(last) and _initial(after[0]) and after[1] == ".":
            end = at + 3
            while end + 2 < len(words) and _initial(words[end + 1]) and words[end + 2] == ".":
                end += 2
            out[-1] += "".join(words[at:end])
            taken = 2  # as in the reference, which does not skip what it has joined
        elif word == "-":
            if after[0] == "-":
                out.append("--")
                taken = 2
            elif at and after[0] and last not in string.punctuation and after[0][0] not in string.punctuation:
                out[-1] += "-"
                hyphenated = True
            else:
                out.append("-")
        elif was_hyphenated and word[0] not in string.punctuation:
            out[-1] += word
        else:
            out.append(word)
        at += taken
    return " ".join(out)


def _number(word: str) -> bool:
    return all(letter.isdigit() or letter == "," for letter in word)


def _initial(word: str) -> bool:
    return len(word) == 1 and word.isupper()


def summary_sentences(prediction: str) -> list[str]:
    """The sentences of a cnndm prediction that are scored.

    Those of at most four words are dropped, and those of which more than 70% of the distinct words stand in a sentence
    before.
    """
    repaired = [repair_tokens(sentence, UPPER_NAMES) for sentence in prediction.strip().split(SENTENCE_END)]
    kept, seen = [], set[str]()
    for sentence in repaired:
        words = set(sentence.lower().split())
        if len(sentence.split()) < _SHORTEST_SENTENCE:
            continue
        if len(words & seen) / len(words) <= _MOST_REPEATED:
            kept.append(sentence)
        seen |= words
    return kept
