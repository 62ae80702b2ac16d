"""Tokenizers: numbering of special tokens, round trips, existing models, errors."""

import copy
import dataclasses
import pathlib
import pickle

import pytest
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from janus_jax import text
from janus_jax.config import TextConfig
from janus_jax.decode.gaps import with_fillings, with_gaps

GIVEN = pathlib.Path(__file__).resolve().parents[2].parent / "shared/data/multi30k/deen4000.model"
STEMS = (
    "der haus baum läuf schnell straß hous tree runn quick stre wald berg tal fluss see wolk sonn mond stern".split()
)
WORDS = [stem + ending for stem in STEMS for ending in ("", "e", "en", "er", "ing", "ly", "chen", "ung")]
LINES = [" ".join(WORDS[(7 * i + i * k * k) % len(WORDS)] for k in range(1, 3 + i % 7)) for i in range(400)]
CONFIG = TextConfig(vocab_size=330)


@pytest.fixture(scope="module")
def tokenizer():
    return text.train(LINES, CONFIG)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_trained_model_numbers_specials_first_and_round_trips(model_type):
    tokenizer = text.train(LINES, dataclasses.replace(CONFIG, model_type=model_type))
    proto = model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.to_bytes())
    assert [piece.piece for piece in proto.pieces[:5]] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.vocab_size == len(proto.pieces) == 330
    ids = tokenizer.encode_batch(LINES)
    assert ids == [tokenizer.encode(line) for line in LINES]
    # SentencePiece's own ids, without renumbering
    assert ids[0] == list(tokenizer._processor.encode(LINES[0]))
    assert tokenizer.decode_batch(ids) == LINES


def test_no_bpe_piece_joins_a_word_and_punctuation():
    lines = [f"({line}), 20{i % 30}." for i, line in enumerate(LINES)]
    tokenizer = text.train(lines, TextConfig(vocab_size=400, model_type="bpe"))
    proto = model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.to_bytes())
    pieces = [piece.piece.replace("\u2581", "") for piece in proto.pieces if piece.type == piece.NORMAL]
    assert any(len(piece) > 3 for piece in pieces)
    assert not [piece for piece in pieces if any(c.isalnum() for c in piece) and not piece.isalnum()]
    assert tokenizer.decode_batch(tokenizer.encode_batch(lines)) == lines


def test_training_is_deterministic(tokenizer):
    assert text.train(LINES, CONFIG).to_bytes() == tokenizer.to_bytes()


def test_training_lines_are_spread_evenly():
    lines = ["first words only"] * 200 + ["zebra quagga xylophone"] * 200
    tokenizer = text.train(
        lines, TextConfig(vocab_size=28, train_lines=100, byte_fallback=False, character_coverage=1.0)
    )
    assert 3 not in tokenizer.encode("zebra quagga xylophone first words only")


@pytest.mark.parametrize("line", ["<mask>", "a <s> b </s> <pad> <unk>", "das <mask> Haus"])
def test_text_never_becomes_a_special_id(tokenizer, line):
    ids = tokenizer.encode(line)
    assert ids
    assert min(ids) > 4
    assert tokenizer.decode(ids) == line


def test_byte_fallback_leaves_nothing_unknown(tokenizer):
    line = "Haus 猫 🙂"
    ids = tokenizer.encode(line)
    assert 3 not in ids
    assert tokenizer.decode(ids) == line
    without = text.train(LINES, TextConfig(vocab_size=60, byte_fallback=False))
    assert 3 in without.encode(line)
    assert "\u2047" in without.decode(without.encode(line))


def test_text_around_gaps_keeps_its_spaces(tokenizer):
    whole = "the day (12:30), and"
    for target, parts in (
        ("<mask>.", ["", "."]),
        ("the <mask>, and", ["the", ", and"]),
        ("the day (<mask>), and", ["the day (", "), and"]),
    ):
        ids = with_gaps([target], tokenizer, tokenizer.specials.mask, 1)[0]
        assert tokenizer.decode(ids) == "".join(parts)
        assert ids.count(tokenizer.specials.mask) == 1
    # As the text without gaps would be, where the parts are tokens of their own.
    (ids, inside), (spaced, _) = with_fillings(
        ["the day (<mask>), and", "the day <mask> and"],
        [["12:30"], ["12:30"]],
        99,
        tokenizer,
        tokenizer.specials.mask,
        1,
    )
    mark = iter(inside)
    filled = [next(mark) if i == tokenizer.specials.mask else i for i in ids]
    assert tokenizer.decode(filled) == whole
    assert tokenizer.decode(spaced) == "the day and"
    with pytest.raises(
        ValueError, match=r"line 7: 'the' holds a word that the tokenizer does not know, and this model"
    ):
        with_gaps(["the <mask>"], tokenizer, tokenizer.encode("the")[0], 7)


def test_decode_skips_specials_and_names_a_foreign_id(tokenizer):
    ids = tokenizer.encode("das haus")
    assert tokenizer.decode([0, 4, *ids, 2, 1, 1]) == "das haus"
    assert tokenizer.decode([]) == ""
    for bad in (tokenizer.vocab_size, -1):
        with pytest.raises(text.TokenizerError, match=f"token id {bad} lies outside"):
            tokenizer.decode([*ids, bad])


def test_empty_inputs(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode_batch(["", "das", ""])[::2] == [[], []]


def test_bytes_hold_the_whole_tokenizer(tokenizer):
    again = text.load(tokenizer.to_bytes())
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_a_tokenizer_can_be_copied_and_sent_to_a_process(tokenizer):
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.to_bytes() == tokenizer.to_bytes()
        assert other.encode("ein </s> Haus <mask>") == tokenizer.encode("ein </s> Haus <mask>")


@pytest.mark.skipif(not GIVEN.exists(), reason="the shared Multi30k model is not beside the checkout")
def test_an_existing_model_is_renumbered():
    tokenizer = text.train([], TextConfig(model=str(GIVEN)))
    proto = model_pb2.ModelProto()
    proto.ParseFromString(GIVEN.read_bytes())
    # 4000 pieces of which <unk>, <s> and </s> give way to our five
    assert tokenizer.vocab_size == 4002
    line = "Ein Mann läuft über die Straße ."
    theirs = tokenizer._processor.encode(line)
    ids = tokenizer.encode(line)
    assert ids == [i + 2 for i in theirs]  # its other pieces start at 3, ours at 5
    assert tokenizer.decode(ids) == line
    assert 3 in tokenizer.encode("猫")  # no byte fallback
    again = text.load(tokenizer.to_bytes())
    assert again.encode(line) == ids


def test_renumbering_drops_control_symbols_in_the_middle(tokenizer):
    proto = model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.to_bytes())
    kept = [p.piece for p in proto.pieces[5:]]
    control = proto.pieces[0]
    pieces = [proto.pieces[3], proto.pieces[2], *proto.pieces[5:40], control, *proto.pieces[40:]]
    copy = model_pb2.ModelProto()
    copy.CopyFrom(proto)
    del copy.pieces[:]
    copy.pieces.extend(pieces)
    copy.trainer_spec.unk_id, copy.trainer_spec.bos_id, copy.trainer_spec.eos_id, copy.trainer_spec.pad_id = (
        0,
        -1,
        1,
        -1,
    )
    renumbered = text.load(copy.SerializeToString())
    assert renumbered.vocab_size == 5 + len(kept)
    assert renumbered.encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_errors_name_the_fix(tmp_path):
    with pytest.raises(text.TokenizerError, match=r"each line .* more than 65536 bytes.*a paragraph a line"):
        text.train(["word " * 20_000] * 3, TextConfig(vocab_size=300))
    with pytest.raises(text.TokenizerError, match="vocab_size: 20 does not hold"):
        text.train(LINES, TextConfig(vocab_size=20, byte_fallback=False, character_coverage=1.0))
    with pytest.raises(text.TokenizerError, match="no text"):
        text.train([], CONFIG)
    with pytest.raises(text.TokenizerError, match=r"cannot read .*absent\.model"):
        text.train([], TextConfig(model=str(tmp_path / "absent.model")))
    (tmp_path / "wrong.model").write_text("not a model")
    with pytest.raises(text.TokenizerError, match=r"wrong\.model.*not a SentencePiece model"):
        text.train([], TextConfig(model=str(tmp_path / "wrong.model")))
    with pytest.raises(text.TokenizerError, match="not a SentencePiece model"):
        text.load(b"")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_vocabulary_too_large_for_the_text_becomes_the_largest_possible(model_type):
    lowered = text.train(LINES, TextConfig(model_type=model_type, vocab_size=5000))
    assert lowered.vocab_size < 5000
    largest = text.train(LINES, TextConfig(model_type=model_type, vocab_size=lowered.vocab_size))
    assert largest.to_bytes() == lowered.to_bytes()


def test_a_plain_string_is_no_batch(tokenizer, tmp_path):
    (tmp_path / "dict.txt").write_text("haus 3\n")
    byte_level = text.train(LINES, TextConfig(model_type="byte_bpe", vocab_size=300))
    for one in (tokenizer, byte_level, text.read(str(tmp_path / "dict.txt"))):
        with pytest.raises(TypeError, match="lines: 'haus' is a plain string"):
            one.encode_batch("haus")


def test_word_starts(tokenizer):
    starts = tokenizer.word_starts()
    assert starts.dtype == bool
    assert starts.shape == (tokenizer.vocab_size,)
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    assert starts[:5].all()
    assert starts[5:].tolist() == [piece.startswith("\u2581") for piece in pieces[5:]]
    line = "der haus baum"
    assert starts[tokenizer.encode(line)].sum() == 3
