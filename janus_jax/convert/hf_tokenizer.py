"""Writes tokenizers as files that `transformers.AutoTokenizer.from_pretrained` reads, with the same ids.

Written for transformers 5 (`PreTrainedTokenizerFast`; needs no code of janus_jax). These differences to janus_jax
("here") remain in transformers ("there"):
- Text that spells a special token ("<mask>", "</s>"), or for unigram normalises to one (its full-width form): the token
  itself there, plain text here.
- unk in decoding: dropped with `skip_special_tokens=True`, shown as "<unk>" otherwise; U+2047 here.
- SentencePiece's byte pieces: text that spells one ("<0xE2>") is that byte there (unigram). A sequence of byte pieces
  that is not valid UTF-8 decodes entirely to U+FFFD there; here its complete characters are kept.
- SentencePiece's normalisation: text in Unicode's composed form (NFC) and in its decomposed form gives the same ids. In
  three cases a mark is composed there and not here: a composed letter has one more mark that composes ("ü" and U+0300);
  marks that compose are not in Unicode's order; a mark follows a character that the table replaces by several ("№",
  U+0344). Compositions that Unicode 16 added are composed only there. U+FDD0 (a noncharacter) is lost there.
- SentencePiece's unigram: if two segmentations have the same score (the same pieces in another order, in long
  repetitions such as "hahahahaha"), rounding decides, in float32 here and float64 there. BPE: the same for pieces of
  equal score.
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
# Normalisations of SentencePiece that treat composed and decomposed text alike; another table may not.
_COMPOSED = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
_ALL = 1 << 16
_APART = "\ufdd0"  # a noncharacter, which no text contains


def tokenizer_files(tokenizer: Tokenizer, *, longest: int | None = None, bos_eos: bool = True) -> dict[str, str]:
    """Names and contents of the files of an equal Hugging Face tokenizer.

    Args:
      tokenizer: any of `janus_jax.text`.
      longest: tokens that the model reads, bos and eos counted; `truncation=True` cuts to them. None: not known.
      bos_eos: the Hugging Face tokenizer puts bos before and eos after the ids.

    Raises:
      TokenizerError: transformers has no equal of this kind of SentencePiece model.
    """
    if isinstance(tokenizer, BpeTokenizer):
        converted = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
        if tokenizer.prefixed:  # the space that encoding puts first is no text
            converted.decoder = decoders.Sequence([converted.decoder, decoders.Strip(" ", 1, 0)])
        mask = MASK
    elif isinstance(tokenizer, DictionaryTokenizer):
        converted = _from_dictionary(tokenizer)
        mask = FIRST[tokenizer.specials.mask] if tokenizer.specials.mask < len(FIRST) else MASK
    elif isinstance(tokenizer, SentencePieceTokenizer):
        converted = _from_sentencepiece(tokenizer)
        mask = MASK
    else:
        raise TokenizerError(
            f"{type(tokenizer).__name__} cannot be written for Hugging Face; use a tokenizer of janus_jax.text"
        )
    bos, pad, eos, unk = FIRST
    around = (f"{bos} $A {eos}", f"{bos} $A {eos} $B:1 {eos}:1") if bos_eos else ("$A", "$A $B:1")
    # Set even where it adds nothing: without it transformers adds its own.
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
    } | ({"model_max_length": longest} if longest else {})
    return {
        "tokenizer.json": converted.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _from_dictionary(tokenizer: DictionaryTokenizer) -> tokenizers.Tokenizer:
    numbers = {word: number for number, word in enumerate(tokenizer.words)}
    numbers |= {word: number for number, word in enumerate(FIRST)}
    converted = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    # White space as Python's str.split defines it.
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
            "SentencePiece models with treat_whitespace_as_suffix or without escape_whitespaces cannot be written for Hugging Face"
        )
    pieces = _pieces(tokenizer)
    if trainer.model_type == trainer.UNIGRAM:
        model = _unigram(pieces, trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        model = _bpe(pieces, trainer.byte_fallback)
    else:
        raise TokenizerError(
            "a SentencePiece model of type word or char cannot be written for Hugging Face; use unigram or bpe"
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
    """(text, score, type) of each token id; a piece with the name of a special token gets another name."""
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
        # As in SentencePiece: a user-defined symbol scores higher than any other segmentation of its text.
        score = len(text.encode()) * best - 0.1 if kind == _PIECE.USER_DEFINED else score
        scored.append((text, score))
    return models.Unigram(scored, unk_id=3, byte_fallback=byte_fallback)


def _bpe(pieces: list[tuple[str, float, int]], byte_fallback: bool) -> models.BPE:
    """SentencePiece joins the two neighbours whose union scores best, so every split of a piece into two pieces is a merge."""
    vocab = {text: number for number, (text, _, _) in enumerate(pieces)}
    if any(kind == _PIECE.USER_DEFINED for _, _, kind in pieces):
        raise TokenizerError(
            "a SentencePiece BPE model with user-defined symbols cannot be written for Hugging Face; use unigram"
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
        # `Precompiled` looks up characters one by one, but looks up a short character together with its marks, and may
        # lose the marks. A separator before each mark prevents that.
        steps += [
            normalizers.Replace(tokenizers.Regex(r"(?!\A)(?=[\p{M}\p{Cf}\x{ff9e}\x{ff9f}])"), _APART),
            normalizers.Precompiled(spec.precompiled_charsmap),
        ]
        if spec.name in _COMPOSED:
            # SentencePiece's table composes letters and marks, and keeps the order of marks. So only marks that may
            # compose (at most three) are joined to their letter again.
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
    """Two sets, as strings: marks that compose with a following mark, and characters that compose with the one before."""
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
