"""fairseq's dict.txt: numbering, unknown words, subwords, masks, errors."""

import numpy as np
import pytest

from janus_jax import text
from janus_jax.config import TextConfig
from janus_jax.types import Specials

LINES = "der 90\nHa@@ 40\nus 39\nmadeupword0000 0\n"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "dict.txt").write_text(LINES)
    return tmp_path / "dict.txt"


def test_ids_follow_the_lines(path):
    tokenizer = text.read(path)
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode("der  Ha@@ us\tden ") == [4, 5, 6, 3]
    assert tokenizer.encode_batch(["us", ""]) == [[6], []]
    assert tokenizer.encode("") == []
    assert text.train([], TextConfig(model=str(path))).to_bytes() == tokenizer.to_bytes()


def test_decode_joins_subwords_skips_specials_and_shows_unk(path):
    tokenizer = text.read(path)
    assert tokenizer.decode([0, 4, 5, 6, 3, 2, 1]) == "der Haus \u2047"
    assert tokenizer.decode([4, 5]) == "der Ha"
    assert tokenizer.decode_batch([[], [6]]) == ["", "us"]
    assert tokenizer.pieces([0, 5, 6, 3, 2]) == ["<bos>", "Ha@@", "us", "<unk>", "<eos>"]
    for bad in (8, -1):
        with pytest.raises(text.TokenizerError, match=f"token id {bad} lies outside"):
            tokenizer.decode([4, bad])


def test_unk_stands_for_the_mask_unless_the_dictionary_has_one(path):
    assert text.read(path).specials == Specials(mask=3)
    path.write_text(LINES + "<mask> 0\n")
    tokenizer = text.read(path)
    assert tokenizer.specials == Specials(mask=8)
    assert tokenizer.encode("<mask> <s> der") == [3, 3, 4]
    assert tokenizer.decode([8, 4]) == "der"
    assert tokenizer.pieces([8, 3]) == ["<mask>", "<unk>"]


def test_flag_allows_a_word_twice_and_the_last_counts(path):
    path.write_text("der 9\n<s> 1 #fairseq:overwrite\nder 1 #fairseq:overwrite\n")
    tokenizer = text.read(path)
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode("der <s>") == [6, 5]
    assert tokenizer.decode([4, 6]) == "der der"


def test_every_token_counts_as_a_words_start(path):
    starts = text.read(path).word_starts()
    assert starts.dtype == bool
    np.testing.assert_array_equal(starts, np.ones(8))


def test_bytes_hold_the_whole_tokenizer(path):
    tokenizer = text.read(path)
    again = text.load(tokenizer.to_bytes())
    assert isinstance(again, text.DictionaryTokenizer)
    assert again.to_bytes() == tokenizer.to_bytes()
    assert again.encode("der us") == [4, 6]


def test_training_takes_the_most_frequent_words():
    lines = ["B b <mask> a", "a AH", "<s> a b"]
    tokenizer = text.train(lines, TextConfig(model_type="word", vocab_size=100))
    assert tokenizer.specials == Specials()  # with a mask token of its own
    assert tokenizer.words[5:] == ["a", "b", "AH", "B"]
    assert tokenizer.decode(tokenizer.encode("B AH a")) == "B AH a"
    assert tokenizer.encode("<mask> c") == [3, 3]
    assert text.load(tokenizer.to_bytes()).words == tokenizer.words
    fewer = TextConfig(model_type="word", vocab_size=7)
    assert text.train(lines, fewer).words[5:] == ["a", "b"]
    assert text.train([*lines, "c"] * 100, TextConfig(model_type="word", train_lines=3)).vocab_size <= 9
    with pytest.raises(text.TokenizerError, match="no text to train"):
        text.train(["<s>", " "], fewer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"der 9\nHaus\n", "line 2: 'Haus' is not a word and a count"),
        (b"der 9\nder 8\n", "line 2: 'der' is there twice"),
        (b"", "line 1: '' is not a word"),
        (b"\xff 1\n", "not UTF-8"),
    ],
)
def test_errors_name_file_and_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(text.TokenizerError, match=rf"dict\.txt.*{message}"):
        text.read(path)
    with pytest.raises(text.TokenizerError, match=r"cannot read .*absent\.txt"):
        text.read(path.with_name("absent.txt"))
