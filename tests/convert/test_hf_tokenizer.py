"""Tokenizers written for Hugging Face give the same ids and the same text, on lines of many languages and scripts."""

import io
import json
import pathlib
import random
import unicodedata

import pytest
import sentencepiece

from janus_jax import text
from janus_jax.config import TextConfig
from janus_jax.convert.hf_tokenizer import tokenizer_files
from janus_jax.text import DictionaryTokenizer, bpe_files

transformers = pytest.importorskip("transformers")

MULTI30K = pathlib.Path(__file__).resolve().parents[2].parent / "shared/data/multi30k"
STEMS = "der haus baum läuf schnell straß hous tree runn quick stre wald berg tal fluss see wolk sonn mond".split()
WORDS = [stem + ending for stem in STEMS for ending in ("", "e", "en", "er", "ing", "ly", "chen", "ung")]
TRAINING = [" ".join(WORDS[(7 * i + i * k * k) % len(WORDS)] for k in range(1, 3 + i % 7)) for i in range(400)]
ODD = [
    *"àéîõüçñøłžşğ", "Ærøskøbing", "ΑΒΓ ὦ", "Привет", "שָׁלוֹם", "مُحَمَّد", "नमस्ते", "ক্ষো", "தமிழ்", "ไทย", "猫が好き", "한국어",
    "ｶﾞｷﾞ", "\uff26\uff55\uff4c\uff4c", "\uff5e\u301c", "㎏", "½", "ﬁne", "…", "™", "№", "①", "🙂", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "1️⃣", "\U0001d50a\U0001d52f", "𐍈", "\u00a0",
    "\u3000", "\u200b", "\u00ad", "\t", "  ", "   ", " ", "▁", "a▁ b", "!!!!!", ".......", "aaaaaa", "(x),", "20.000", "don't",
    "e\u0301", "か\u3099", "\u1112\u1161\u11ab", "e\u0323\u0302", "@@ ", "##x", "<b>", "\\n",
]  # fmt: skip
CONFIGS = {
    "unigram": TextConfig(vocab_size=400),
    "bpe": TextConfig(vocab_size=400, model_type="bpe"),
    "unigram without bytes": TextConfig(vocab_size=90, byte_fallback=False),
    "bpe without bytes": TextConfig(vocab_size=90, byte_fallback=False, model_type="bpe"),
    "byte_bpe": TextConfig(vocab_size=400, model_type="byte_bpe"),
}


def odd_lines(count):
    """Lines of words, odd strings and characters from all of Unicode, joined by nothing or spaces."""
    draw = random.Random(1)
    letters = [c for c in map(chr, range(32, 0x2FFFF)) if unicodedata.category(c)[0] in "LNPSZ"]
    lines = ["", " ", "  ", "a", " a", "a ", "  a  b  ", "haus , wald 's . do n't !"]
    while len(lines) < count:
        parts = []
        for _ in range(draw.randint(1, 9)):
            kind = draw.random()
            parts.append(draw.choice(WORDS if kind < 0.5 else ODD if kind < 0.9 else letters))
            parts.append(draw.choice(["", " ", " ", "  "]))
        lines.append("".join(parts))
    return lines


LINES = odd_lines(1500)


def hugging_face(tokenizer, folder, **settings):
    for name, content in tokenizer_files(tokenizer, **settings).items():
        (folder / name).write_text(content, encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


def check_equal(tokenizer, other, lines):
    """Asserts the same ids between bos and eos, and the same text decoded from them (without unk, which transformers drops)."""
    special = tokenizer.specials
    ours = tokenizer.encode_batch(lines)
    assert other(lines)["input_ids"] == [[special.bos, *ids, special.eos] for ids in ours]
    known = [[i for i in ids if i != special.unk] for ids in ours]
    assert [other.decode(ids, skip_special_tokens=True) for ids in ours] == tokenizer.decode_batch(known)


def test_long_text_is_cut_to_what_the_model_reads(tokenizer, tmp_path):
    other = hugging_face(tokenizer, tmp_path, longest=9)
    [whole], [cut] = (other(["Ein Hund und noch ein Hund. " * 9], truncation=one)["input_ids"] for one in (False, True))
    assert len(whole) > 9
    assert cut == [*whole[:8], tokenizer.specials.eos]


@pytest.fixture(scope="module", params=CONFIGS)
def tokenizer(request):
    return text.train(TRAINING, CONFIGS[request.param])


def test_ids_and_text_are_the_same(tokenizer, tmp_path):
    other = hugging_face(tokenizer, tmp_path)
    assert other.is_fast
    assert len(other) == tokenizer.vocab_size
    check_equal(tokenizer, other, [*TRAINING, *LINES])


@pytest.mark.parametrize(
    "settings",
    [
        {"user_defined_symbols": ["<sep>", "</s", "haus|"]},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "model_type": "bpe"},
        {"normalization_rule_name": "identity"},
        {"normalization_rule_name": "nfkc_cf", "model_type": "bpe"},
        {"split_by_whitespace": False, "model_type": "bpe"},
        {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": 2, "control_symbols": ["<lang>"]},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_sentencepiece_models_of_many_kinds(settings, tmp_path):
    lines = [*TRAINING, *LINES, "<sep>haus|haus | das</s und <sep>", "haus|", "Haus <lang> XL"]
    tokenizer = text.load(sentencepiece_model(**settings))
    check_equal(tokenizer, hugging_face(tokenizer, tmp_path), lines)


def sentencepiece_model(**settings):
    """The bytes of a SentencePiece model, trained with these settings."""
    writer = io.BytesIO()
    settings = {"vocab_size": 400, "byte_fallback": True, "num_threads": 1, "minloglevel": 2} | settings
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(TRAINING), model_writer=writer, **settings)
    return writer.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "word", "vocab_size": 40, "byte_fallback": False}, "of type word or char"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"model_type": "bpe", "user_defined_symbols": ["<sep>"]}, "user-defined symbols"),
    ],
)
def test_models_that_cannot_be_written_are_refused(settings, message):
    with pytest.raises(text.TokenizerError, match=message):
        tokenizer_files(text.load(sentencepiece_model(**settings)))
    with pytest.raises(text.TokenizerError, match="object cannot be written for Hugging Face"):
        tokenizer_files(object())


@pytest.mark.skipif(not MULTI30K.exists(), reason="the shared Multi30k files are not beside the checkout")
def test_a_trained_model_on_real_text(tmp_path):
    tokenizer = text.read(MULTI30K / "deen4000.model")
    names = ("val.de", "val.en", "test_2016_flickr.de", "test_2016_flickr.en")
    lines = [line for name in names for line in (MULTI30K / name).read_text(encoding="utf-8").splitlines()]
    check_equal(tokenizer, hugging_face(tokenizer, tmp_path), lines + LINES)


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_fine_tuned_bpe_of_another_program(prefixed, tmp_path):
    """A space put before each text is no part of the decoded text; tokens of the fine-tuning are tokens."""
    fields = json.loads(text.train(TRAINING, CONFIGS["byte_bpe"]).to_bytes())
    fields["pre_tokenizer"]["add_prefix_space"] = prefixed
    fields["added_tokens"].append(bpe_files.added_token("<hl>", 400) | {"special": True})
    (tmp_path / "theirs.json").write_text(json.dumps(fields))
    tokenizer = text.read(tmp_path / "theirs.json")
    other = hugging_face(tokenizer, tmp_path)
    check_equal(tokenizer, other, [*TRAINING[:100], *LINES[:300], "haus <hl> baum<hl>", "<hl>haus"])
    assert 400 in tokenizer.encode("haus <hl> baum")
    # Programs that save the directory again may leave our own file out.
    other.save_pretrained(tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved"):
        again = text.read(folder)
        assert again.to_bytes() == tokenizer.to_bytes()
        assert again.decode(again.encode("haus")) == "haus"


def test_special_tokens_have_the_same_ids(tokenizer, tmp_path):
    # As in an export of a BART model, whose type names another class of tokenizers.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    other, special = hugging_face(tokenizer, tmp_path), tokenizer.specials
    assert (other.bos_token_id, other.pad_token_id, other.eos_token_id) == (special.bos, special.pad, special.eos)
    assert (other.unk_token_id, other.mask_token_id) == (special.unk, special.mask)
    after = " hous" if isinstance(tokenizer, text.BpeTokenizer) else "hous"
    expected = [special.bos, *tokenizer.encode("das"), special.mask, *tokenizer.encode(after), special.eos]
    assert other("das <mask> hous")["input_ids"] == expected
    padded = other(["das", "das hous"], padding=True)
    assert set(padded) == {"input_ids", "attention_mask"}
    assert padded["input_ids"][0][-1] == special.pad


def test_without_bos_and_eos(tokenizer, tmp_path):
    other = hugging_face(tokenizer, tmp_path, bos_eos=False)
    assert other(TRAINING[:50])["input_ids"] == tokenizer.encode_batch(TRAINING[:50])


def test_dictionary(tmp_path):
    words = ["ha@@", "us", "ist", "@@", "x", "naïve", "猫", "madeupword0000"]
    tokenizer = DictionaryTokenizer("".join(f"{word} {9 - i}\n" for i, word in enumerate(words)).encode())
    draw = random.Random(2)
    spaces = [" ", "  ", "\t", "\u00a0", "\u3000", "\x1f", "\x85", "\u2028"]
    lines = [
        "".join(draw.choice([*words, "foreign", "🙂"]) + draw.choice(spaces) for _ in range(i % 9)) for i in range(500)
    ]
    other = hugging_face(tokenizer, tmp_path)
    check_equal(tokenizer, other, lines)
    assert other.mask_token_id == other.unk_token_id == 3
    (tmp_path / "masked").mkdir()
    masked = DictionaryTokenizer(b"ist 3\n<mask> 0\nx 1\n")
    other = hugging_face(masked, tmp_path / "masked")
    assert other.mask_token_id == masked.specials.mask == 5
    check_equal(masked, other, ["x ist", "ist y x"])


def test_a_piece_named_like_a_special_token_keeps_its_id(tmp_path):
    tokenizer = text.load(sentencepiece_model(user_defined_symbols=["<mask>"]))
    other = hugging_face(tokenizer, tmp_path)
    assert other.mask_token_id == 4
    assert len(other) == tokenizer.vocab_size
    check_equal(tokenizer, other, TRAINING)
