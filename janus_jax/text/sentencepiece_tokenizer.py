"""SentencePiece tokenizers: trained here, or existing ones, renumbered so that our special tokens come first."""

import functools
import io
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from janus_jax.config import TextConfig
from janus_jax.text.tokenizer import TokenizerError, checked_ids, list_of_texts
from janus_jax.types import Specials

_PIECE = model_pb2.ModelProto.SentencePiece
_KEPT = (_PIECE.NORMAL, _PIECE.USER_DEFINED, _PIECE.BYTE)
# Training sums counts per thread, so that the result depends on their number: it must not depend on the machine.
_TRAIN_THREADS = 4
# The edge between a letter or digit and punctuation. No BPE piece may span it: else "2020", "2020," and "2020)" are three words.
# (Unigram training prefers words without it. Its candidates are substrings that more than one character can follow: marked edges
# would remove each word that is always followed by a space or a comma.)
_EDGE = re.compile(r"(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)")
_DELIMITER = "\ue000"  # of the private use area; marks edges for the trainer only
_MAX_LINE_BYTES = 1 << 16  # training skips longer lines (SentencePiece's default is 4192)


class SentencePieceTokenizer:
    """A SentencePiece model with our ids: the five special tokens, then the other pieces of the model in their order.

    A model trained here has these ids already. Of any other model the control symbols (its bos, eos, pad...) are left out and
    its unknown token becomes unk.

    Args:
      data: a serialised SentencePiece model.

    Raises:
      TokenizerError: `data` is not a SentencePiece model.
    """

    def __init__(self, data: bytes, origin: str = "tokenizer data"):
        proto = model_pb2.ModelProto()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            proto.ParseFromString(data)
            if not proto.pieces:
                raise ValueError("it has no pieces")
            self._processor.LoadFromSerializedProto(data)
        except Exception as error:  # protobuf and SentencePiece raise several unrelated classes
            raise TokenizerError(
                f"{origin}: not a SentencePiece model ({error}); give the .model file that spm_train wrote"
            ) from error
        self._data = data
        self.proto = proto  # the parts of the model, with its ids
        self.specials = Specials()
        kept = np.array([i for i, piece in enumerate(proto.pieces) if piece.type in _KEPT], np.int32)
        self.kept = kept  # the id in the proto of each of our tokens after the special ones
        first = len(vars(self.specials))
        self.vocab_size = first + len(kept)
        self._ours = np.full(len(proto.pieces), self.specials.unk, np.int32)
        self._ours[kept] = np.arange(first, self.vocab_size)
        self._theirs = np.full(self.vocab_size, -1, np.int32)  # -1: skipped in decoding
        self._theirs[first:] = kept
        self._theirs[self.specials.unk] = self._processor.unk_id()

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        return SentencePieceTokenizer, (self._data,)

    def encode(self, line: str) -> list[int]:
        """Token ids of one line, without bos and eos."""
        return self._ours[self._processor.encode(line)].tolist() if line else []

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of text that follows other text without a space: `encode` would put U+2581 before it."""
        return self._ours[self._inside.encode(text)].tolist() if text else []

    @functools.cached_property
    def _inside(self) -> sentencepiece.SentencePieceProcessor:
        """The same model without the space that it puts before each text."""
        proto = model_pb2.ModelProto()
        proto.CopyFrom(self.proto)
        proto.normalizer_spec.add_dummy_prefix = False
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(proto.SerializeToString())
        return processor

    def encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of many lines, in their order."""
        encoded = self._processor.encode(list_of_texts("lines", lines))
        if not encoded:
            return []
        flat = self._ours[np.concatenate([np.asarray(ids, np.int32) for ids in encoded])].tolist()
        ends = np.cumsum([len(ids) for ids in encoded]).tolist()
        return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Detokenised text; bos, pad, eos and mask are skipped wherever they stand, unk becomes U+2047.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        theirs = self._theirs[checked_ids(ids, self.vocab_size)]
        return self._processor.decode(theirs[theirs >= 0].tolist())

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Detokenised text of many token sequences, in their order."""
        return [self.decode(row) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it, a leading space shown as U+2581; special tokens in angle brackets."""
        names = {number: f"<{name}>" for name, number in vars(self.specials).items()}
        return [names.get(int(i)) or self._processor.id_to_piece(int(self._theirs[i])) for i in ids]

    def word_starts(self) -> np.ndarray:
        """[vocab_size] bool: the pieces that begin with U+2581, and the special tokens."""
        starts = [self.proto.pieces[i].piece.startswith("\u2581") for i in self.kept]
        return np.array([True] * len(vars(self.specials)) + starts)

    def to_bytes(self) -> bytes:
        """The serialised SentencePiece model, from which our ids follow."""
        return self._data


def read(path: str | pathlib.Path) -> SentencePieceTokenizer:
    """Reads a SentencePiece model file.

    Raises:
      TokenizerError: no such file, or not a SentencePiece model.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot read {str(path)!r} ({error.strerror}); name a SentencePiece .model file"
        ) from error
    return SentencePieceTokenizer(data, repr(str(path)))


def train(lines: Sequence[str], config: TextConfig) -> SentencePieceTokenizer:
    """Trains a unigram or BPE model (nmt_nfkc normalisation); the same lines give the same model on any machine.

    The special tokens, `<mask>` too, are control symbols: text that holds "<mask>" or "<s>" never becomes a special id.
    A vocabulary that is too large for the text becomes the largest one that is not.

    Raises:
      TokenizerError: no text, or a vocabulary that does not hold its characters.
    """
    count = min(len(lines), config.train_lines)
    if not count:
        raise TokenizerError("no text to train a tokenizer on; check the training split")
    chosen = [lines[i * len(lines) // count] for i in range(count)]
    if all(len(line.encode()) > _MAX_LINE_BYTES for line in chosen):
        raise TokenizerError(
            f"each line of the training split has more than {_MAX_LINE_BYTES} bytes, and the training of a tokenizer skips such "
            "lines; write a sentence or a paragraph a line"
        )
    try:
        return SentencePieceTokenizer(_train(chosen, config, config.vocab_size))
    except Exception as error:  # SentencePiece raises RuntimeError or its own classes
        if not (largest := re.search(r"<= (\d+)", str(error))):
            raise TokenizerError(_training_fix(str(error), config)) from error
    try:
        return SentencePieceTokenizer(_train(chosen, config, int(largest[1])))
    except Exception as error:
        raise TokenizerError(_training_fix(str(error), config)) from error


def _train(lines: Iterable[str], config: TextConfig, vocab_size: int) -> bytes:
    bpe = config.model_type == "bpe"
    if bpe:
        lines = (_EDGE.sub(_DELIMITER, line.replace(_DELIMITER, "")) for line in lines)
    specials = Specials()
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=writer,
        model_type=config.model_type,
        vocab_size=vocab_size,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        normalization_rule_name="nmt_nfkc",
        bos_id=specials.bos,
        pad_id=specials.pad,
        eos_id=specials.eos,
        unk_id=specials.unk,
        control_symbols=["<mask>"],  # takes the first free id, 4
        pretokenization_delimiter=_DELIMITER if bpe else "",
        num_threads=_TRAIN_THREADS,
        max_sentence_length=_MAX_LINE_BYTES,
        minloglevel=2,
    )
    return writer.getvalue()


def _training_fix(message: str, config: TextConfig) -> str:
    """The message of SentencePiece in terms of our settings."""
    size = f"config.text.vocab_size: {config.vocab_size}"
    if "smaller than required_chars" in message:
        required = re.search(r"required_chars\. \d+ vs (\d+)", message)
        needed = f" to more than {required[1]}" if required else ""
        return (
            f"{size} does not hold the text's characters; raise it{needed} or lower config.text.character_coverage "
            f"({config.character_coverage})"
        )
    return f"SentencePiece could not train ({size}, config.text.model_type: {config.model_type}): {message}"
