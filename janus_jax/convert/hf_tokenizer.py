"""Our tokenizers as files that `transformers.AutoTokenizer.from_pretrained` reads, with the same ids.

Written for transformers 5 (`PreTrainedTokenizerFast`, no code of ours needed). What cannot be the same there:
- Text that spells a special token ("<mask>", "</s>"): the token itself there, plain text here.
- unk in decoding: dropped with `skip_special_tokens=True`, shown as "<unk>" otherwise; U+2047 here.
- SentencePiece's byte pieces: text that spells one ("<0xE2>") is that byte there (unigram), and a run of them that is
  not UTF-8 decodes to U+FFFD throughout; here the characters that are whole in it are kept.
- SentencePiece's normalisation: text composed by Unicode's rules (NFC) and text decomposed by them are the same. Where
  a composed letter has one more mark that composes ("ü" and U+0300), marks that compose stand out of Unicode's order,
  or a mark follows what the table replaces by several characters ("№", U+0344), a mark is composed there and not here.
  So are not compositions that Unicode 16 added; U+FDD0 (no character) is lost there.
- SentencePiece's unigram: of two cuts that score the same (the same pieces in another order, in long repetitions such
  as "hahahahaha") rounding chooses one, in float32 here and float64 there. BPE: as much for pieces that score the same.
"""

import json
import unicodedata
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from janus_jax.text import BpeTokenizer, DictionaryTokenizer, SentencePieceTokenizer, Tokenizer, TokenizerError
from janus_jax.text.tokenizer import FIRST, MASK

_SPACE = "\u2581"
_PIECE = model_pb2.ModelProto.SentencePiece
# Normalisations that SentencePiece brings along, all of composed text; another table may tell composed from decomposed.
_COMPOSED = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
_ALL = 1 << 16
_APART = "\ufdd0"  # a noncharacter: no text has it


def tokenizer_files(tokenizer: Tokenizer, *, bos_eos: bool = True) -> dict[str, str]:
    """Names and contents of the files that make a Hugging Face tokenizer of ours.

    Args:
      tokenizer: any of `janus_jax.text`.
      bos_eos: the Hugging Face tokenizer puts bos before and eos after the ids.

    Raises:
      TokenizerError: the SentencePiece model is of a kind that has no equal there.
    """
    if isinstance(tokenizer, BpeTokenizer):
        converted = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
        mask = MASK
    elif isinstance(tokenizer, DictionaryTokenizer):
        converted = _from_dictionary(tokenizer)
        mask = FIRST[tokenizer.specials.mask] if tokenizer.specials.mask < len(FIRST) else MASK
    elif isinstance(tokenizer, SentencePieceTokenizer):
        converted = _from_sentencepiece(tokenizer)
        mask = MASK
    else:
        raise TokenizerError(f"no Hugging Face form is known for {type(tokenizer).__name__}; use one of janus_jax.text")
    bos, pad, eos, unk = FIRST
    around = (f"{bos} $A {eos}", f"{bos} $A {eos} $B:1 {eos}:1") if bos_eos else ("$A", "$A $B:1")
    # Given even where it adds nothing: in its absence transformers makes one up.
    converted.post_processor = processors.TemplateProcessing(
        single=around[0], pair=around[1], special_tokens=[(bos, tokenizer.specials.bos), (eos, tokenizer.specials.eos)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unk,
        "pad_token": pad,
        "mask_token": mask,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {
        "tokenizer.json": converted.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _from_dictionary(tokenizer: DictionaryTokenizer) -> tokenizers.Tokenizer:
    numbers = {word: number for number, word in enumerate(tokenizer.words)}
    numbers |= {word: number for number, word in enumerate(FIRST)}
    converted = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    # What Python's str.split takes for white space.
    converted.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\x1c-\x1f]+"), "removed")
    converted.decoder = decoders.Sequence(
        [
            decoders.Replace(tokenizers.Regex(r"\A"), " "),
            decoders.Fuse(),
            decoders.Replace("@@ ", ""),
            decoders.Replace(tokenizers.Regex(r" ?@@\z"), ""),
            decoders.Strip(" ", 1, 0),
        ]
    )
    converted.add_special_tokens([_special(name) for name in (*FIRST, MASK) if name in numbers])
    return converted


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    proto = tokenizer.proto
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise TokenizerError(
            "SentencePiece models with treat_whitespace_as_suffix or without escape_whitespaces have no Hugging Face form"
        )
    pieces = _pieces(tokenizer)
    if trainer.model_type == trainer.UNIGRAM:
        model = _unigram(pieces, trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        model = _bpe(pieces, trainer.byte_fallback)
    else:
        raise TokenizerError(
            "a SentencePiece model of type word or char has no Hugging Face form; unigram and bpe have"
        )
    converted = tokenizers.Tokenizer(model)
    converted.normalizer = _normalizer(normalizer)
    first = _ALL if normalizer.remove_extra_whitespaces else int(normalizer.add_dummy_prefix)
    converted.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", first, 0),
        ]
    )
    converted.add_special_tokens([_special(name) for name in (*FIRST, MASK)])
    return converted


def _pieces(tokenizer: SentencePieceTokenizer) -> list[tuple[str, float, int]]:
    """(text, score, type) of each of our ids; a piece named like a special token of ours gets another name."""
    pieces = [(name, 0.0, _PIECE.CONTROL) for name in (*FIRST, MASK)]
    taken = {name for name, _, _ in pieces}
    for number in tokenizer.kept.tolist():
        piece = tokenizer.proto.pieces[number]
        text = f"{piece.piece}#{number}" if piece.piece in taken else piece.piece
        pieces.append((text, piece.score, piece.type))
    return pieces


def _unigram(pieces: list[tuple[str, float, int]], byte_fallback: bool) -> models.Unigram:
    best = max(score for _, score, kind in pieces if kind == _PIECE.NORMAL)
    scored = []
    for text, score, kind in pieces:
        # SentencePiece's own rule: a user's symbol is worth more than any other way to cut its text.
        given = len(text.encode()) * best - 0.1 if kind == _PIECE.USER_DEFINED else score
        scored.append((text, given))
    return models.Unigram(scored, unk_id=3, byte_fallback=byte_fallback)


def _bpe(pieces: list[tuple[str, float, int]], byte_fallback: bool) -> models.BPE:
    """SentencePiece joins the two neighbours whose union scores best: every way to cut a piece in two is a merge."""
    vocab = {text: number for number, (text, _, _) in enumerate(pieces)}
    if any(kind == _PIECE.USER_DEFINED for _, _, kind in pieces):
        raise TokenizerError(
            "a SentencePiece BPE model with user-defined symbols has no Hugging Face form; unigram has"
        )
    scores = {text: score for text, score, kind in pieces if kind == _PIECE.NORMAL}
    merges = []
    for text in sorted(scores, key=lambda text: (-scores[text], vocab[text])):
        cuts = ((text[:i], text[i:]) for i in range(1, len(text)))
        merges += [(left, right) for left, right in cuts if left in scores and right in scores]
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps = []
    if spec.precompiled_charsmap:
        # `Precompiled` looks up characters one by one, but a short character with marks as a whole, of which it may
        # lose the marks: each mark is set apart.
        steps += [
            normalizers.Replace(tokenizers.Regex(r"(?!\A)(?=[\p{M}\p{Cf}\x{ff9e}\x{ff9f}])"), _APART),
            normalizers.Precompiled(spec.precompiled_charsmap),
        ]
        if spec.name in _COMPOSED:
            # SentencePiece's table composes letters and marks, and leaves the order of marks alone: only marks that may
            # compose, three at most, are put back to their letter.
            bases, marks = _composing()
            before = "|".join(rf"[[^\p{{Mn}}{_APART}]{bases}]" + n * (f"{_APART}[{marks}]") for n in range(3))
            apart = f"(?<={before}){_APART}(?=[{marks}])"
            steps += [normalizers.Replace(tokenizers.Regex(apart), ""), normalizers.NFC()]
        steps += [normalizers.Replace(_APART, "")]
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(tokenizers.Regex(rf"\A +|[ {_SPACE}]+\z"), ""),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    if spec.add_dummy_prefix:
        steps += [normalizers.Prepend(_SPACE)]
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _composing() -> tuple[str, str]:
    """The marks that compose with a mark after them, and the characters that compose with what stands before them."""
    bases, marks = set(), set()
    for number in range(0x20000):  # beyond, characters have no parts
        parts = unicodedata.decomposition(chr(number)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (chr(int(part, 16)) for part in parts)
            marks.add(second)
            if unicodedata.category(first) == "Mn" and not unicodedata.combining(first):
                bases.add(first)
    return "".join(sorted(bases)), "".join(sorted(marks))


def _special(name: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(name, special=True, normalized=False)
