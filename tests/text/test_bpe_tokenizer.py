"""Byte-level BPE: published ids and layouts, exact round trips, special tokens that text cannot spell, training."""

import copy
import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from janus_jax import text
from janus_jax.config import TextConfig
from janus_jax.text import bpe_files
from janus_jax.types import Specials

WORDS = "der haus baum läuf schnell straß house tree running quick street wald berg tal fluss see".split()
LINES = [" ".join(WORDS[(7 * i + i * k * k) % len(WORDS)] for k in range(1, 4 + i % 5)) for i in range(300)]
CONFIG = TextConfig(model_type="byte_bpe", vocab_size=320)
HARD = [
    " leading", "trailing ", "  two  spaces  ", "\ttab\nline\r\n", "", " ", "Haus 猫 🙂 👩‍👩‍👧", "naïve cafe\u0301", "\u00a0\u3000\u200b",
    "\x00\x01\x7f", "\ufeff\ufffd\uffff", "\U0010ffff", "don't '90s", "a , b .", "▁ Ġ", "<mask>", "a <s> b </s> <pad> <unk>", "das <mask>",
]  # fmt: skip
# GPT-2's tokens of a tiny world: the 256 bytes by their characters, then three pairs.
MERGES = [("a", "b"), ("Ġ", "ab"), ("ab", "c")]
GPT2 = [*bpe_files.BYTES, "ab", "Ġab", "abc", "<|endoftext|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return text.train(LINES, CONFIG)


def bart_vocab():
    """Token -> id as BART numbers them: `<mask>` last."""
    order = ["<s>", "<pad>", "</s>", "<unk>", *reversed(GPT2), "madeupword0000", "<mask>"]
    return {token: number for number, token in enumerate(order)}


def write_hugging_face(folder):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(bart_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    return folder


def write_fairseq(folder):
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps({token: number for number, token in enumerate(GPT2)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    lines = [f"{number} {number + 5}\n" for number in reversed(range(len(GPT2)))]
    (folder / "dict.txt").write_text("".join(lines) + "madeupword0000 0\n")
    return folder


def published(**changes):
    """The fields of a tokenizer.json of BART's kind."""
    return bpe_files.tokenizer_fields(bart_vocab(), MERGES) | changes


def test_trained_tokenizer_numbers_specials_first_then_every_byte(tokenizer):
    tokens = json.loads(tokenizer.to_bytes())["model"]["vocab"]
    order = sorted(tokens, key=tokens.get)
    assert order[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert set(order[5:261]) == set(bpe_files.BYTES)
    assert tokenizer.specials == Specials()
    assert tokenizer.vocab_size == len(tokens) == 320


def test_a_space_that_the_file_puts_before_text_is_no_text():
    fields = published()
    bytewise = fields["pre_tokenizer"] | {"add_prefix_space": True}
    for pre_tokenizer in (bytewise, {"type": "Sequence", "pretokenizers": [bytewise]}):
        prefixed = text.load(json.dumps(fields | {"pre_tokenizer": pre_tokenizer}).encode())
        plain = text.load(json.dumps(fields).encode())
        vocab = bart_vocab()
        assert prefixed.encode("ab") == [vocab["Ġab"]]
        assert prefixed.decode(prefixed.encode("ab c")) == "ab c"
        assert prefixed.encode_inside("ab") == plain.encode_inside("ab") == plain.encode("ab") == [vocab["ab"]]
        assert plain.decode(plain.encode(" ab")) == " ab"


@pytest.mark.parametrize("line", HARD)
def test_any_text_round_trips_and_never_becomes_a_special_id(tokenizer, line):
    ids = tokenizer.encode(line)
    assert min(ids, default=5) > 4
    assert tokenizer.decode(ids) == line


def test_batches_equal_single_lines(tokenizer):
    lines = [*LINES, *HARD]
    ids = tokenizer.encode_batch(lines)
    assert ids == [tokenizer.encode(line) for line in lines]
    assert tokenizer.decode_batch(ids) == lines
    assert tokenizer.encode_batch([]) == []


def test_training_is_deterministic_on_any_number_of_threads(tokenizer, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    program = (
        "import sys; from janus_jax import text; from janus_jax.config import TextConfig;"
        "lines = open(sys.argv[1], encoding='utf-8').read().split('\\n');"
        "sys.stdout.buffer.write(text.train(lines, TextConfig(model_type='byte_bpe', vocab_size=320)).to_bytes())"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {"PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", program, str(tmp_path / "lines.txt")]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == tokenizer.to_bytes()


def test_training_text_that_spells_a_special_token_is_text():
    tokenizer = text.train(["<mask> <mask> <mask> haus"] * 20, dataclasses.replace(CONFIG, vocab_size=265))
    assert tokenizer.pieces(tokenizer.encode("x <mask>"))[1:] != ["<mask>"]
    assert any("ma" in piece for piece in tokenizer.pieces(range(261, 265)))


def test_decode_skips_specials_shows_unk_and_names_a_foreign_id(tokenizer):
    ids = tokenizer.encode("das haus")
    assert tokenizer.decode([0, 4, *ids[:2], 4, *ids[2:], 2, 1, 1]) == "das haus"
    assert "\u2047" in tokenizer.decode([*ids, 3])
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("ä")[:1]) == "\ufffd"
    for bad in (tokenizer.vocab_size, -1):
        with pytest.raises(text.TokenizerError, match=f"token id {bad} lies outside"):
            tokenizer.decode([*ids, bad])


def test_pieces_show_spaces_characters_and_bytes(tmp_path):
    tokenizer = text.read(write_hugging_face(tmp_path / "bart"))
    mask = tokenizer.specials.mask
    assert tokenizer.pieces([0, *tokenizer.encode("abc abd"), mask, 1, 2, 3]) == [
        "<bos>", "abc", "▁ab", "d", "<mask>", "<pad>", "<eos>", "<unk>",
    ]  # fmt: skip
    assert tokenizer.pieces(tokenizer.encode("é")) == ["<0xC3>", "<0xA9>"]


def test_word_starts(tmp_path):
    tokenizer = text.read(write_hugging_face(tmp_path / "bart"))
    starts = tokenizer.word_starts()
    tokens = bart_vocab()
    assert starts.dtype == bool
    assert starts.shape == (tokenizer.vocab_size,)
    special = {0, 1, 2, 3, tokens["<mask>"]}
    assert set(np.flatnonzero(starts).tolist()) == special | {tokens["Ġ"], tokens["Ġab"]}


def test_layouts_of_bart_give_the_same_tokenizer_with_published_ids(tmp_path):
    hugging_face = text.read(write_hugging_face(tmp_path / "hf"))
    fairseq = text.read(write_fairseq(tmp_path / "fairseq"))
    (tmp_path / "tokenizer.json").write_bytes(hugging_face.to_bytes())
    whole = text.read(tmp_path / "tokenizer.json")
    folder = text.train([], TextConfig(model=str(tmp_path)))  # the folder that holds tokenizer.json
    tokens = bart_vocab()
    for tokenizer in (hugging_face, fairseq, whole, folder):
        assert tokenizer.to_bytes() == hugging_face.to_bytes()
        assert tokenizer.specials == Specials(mask=tokens["<mask>"])
        assert tokenizer.vocab_size == len(tokens)
        assert tokenizer.encode("abc ab") == [tokens["abc"], tokens["Ġab"]]
        assert tokenizer.decode_batch(tokenizer.encode_batch(HARD)) == HARD


def test_bytes_hold_the_whole_tokenizer(tokenizer):
    again = text.load(tokenizer.to_bytes())
    assert again.to_bytes() == tokenizer.to_bytes()
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_copies_encode_special_tokens_as_text_too(tokenizer):
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.to_bytes() == tokenizer.to_bytes()
        ids = other.encode_batch([*HARD, *LINES])
        assert ids == tokenizer.encode_batch([*HARD, *LINES])
        assert other.decode_batch(ids) == tokenizer.decode_batch(ids)
        assert other.encode_inside("haus") == tokenizer.encode_inside("haus")


def fine_tuned(special=True, **marks):
    """The fields of a tokenizer.json to which a fine-tuning has added tokens."""
    first, fields = len(bart_vocab()), published()
    for number, token in enumerate(("<hl>", "<é ü>"), first):
        entry = bpe_files.added_token(token, number) | {"special": special} | marks
        fields["added_tokens"].append(entry)
    return fields


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_a_fine_tuning_added_are_tokens(special, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(fine_tuned(special)))
    tokenizer = text.read(tmp_path)
    vocab, first = bart_vocab(), len(bart_vocab())
    assert tokenizer.vocab_size == first + 2
    line = "ab <hl> ab<hl> <é ü>ab"
    ids = tokenizer.encode(line)
    space = vocab["Ġ"]
    assert ids == [vocab["ab"], space, first, vocab["Ġab"], first, space, first + 1, vocab["ab"]]
    assert tokenizer.decode(ids) == line
    assert tokenizer.pieces(ids)[2:7] == ["<hl>", "▁ab", "<hl>", "▁", "<é▁ü>"]
    assert not tokenizer.word_starts()[first:].any()
    for text_of_special in HARD:
        ids = tokenizer.encode(text_of_special)
        assert not set(ids) & set(vars(tokenizer.specials).values())
        assert tokenizer.decode(ids) == text_of_special
    again = text.load(tokenizer.to_bytes())
    assert again.to_bytes() == tokenizer.to_bytes()
    assert again.encode(line) == tokenizer.encode(line)


def test_a_stored_tokenizer_keeps_its_marks():
    """Those of the first versions were trained with added tokens that are text."""
    stored = text.load(json.dumps(fine_tuned(True)).encode())
    assert text.load(stored.to_bytes()).to_bytes() == stored.to_bytes()
    assert len(bart_vocab()) not in stored.encode("ab <hl>")


def test_tokens_added_beside_vocab_json(tmp_path):
    folder = write_hugging_face(tmp_path / "bart")
    plain, first = text.read(folder), len(bart_vocab())
    added = {"<é ü>": first + 1, "<hl>": first, "<mask>": first - 1}  # transformers lists some tokens of vocab.json too
    (folder / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = text.read(folder)
    assert tokenizer.to_bytes() == text.load(json.dumps(fine_tuned(False)).encode()).to_bytes()
    assert tokenizer.specials == plain.specials
    assert tokenizer.encode("ab<hl>") == [*plain.encode("ab"), first]
    vocab = bart_vocab()
    del vocab["<mask>"]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    without = text.read(folder)  # the mask is an added token too
    assert without.specials == tokenizer.specials
    assert without.encode_batch([*HARD, "ab<hl>"]) == tokenizer.encode_batch([*HARD, "ab<hl>"])
    for wrong, message in (
        ({"<mask>": first - 1, "<hl>": first + 1}, f"has '<hl>' as {first + 1}, but the next free id is {first}"),
        ({"<hl>": 7}, f"has '<hl>' as 7, but the next free id is {first - 1}"),
        ({"<s>": first - 1}, f"has '<s>' as {first - 1}, but vocab.json as 0"),
        ([1], "must be a JSON object"),
    ):
        (folder / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(text.TokenizerError, match=rf"added_tokens\.json' {message}"):
            text.read(folder)


def test_what_a_file_says_of_lengths_and_frames_is_left_out():
    frame = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 2],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    fill = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    plain = text.load(json.dumps(published()).encode())
    framed = text.load(json.dumps(published(post_processor=frame, truncation=cut, padding=fill)).encode())
    assert framed.encode_batch(LINES[:20]) == plain.encode_batch(LINES[:20])
    assert framed.to_bytes() == plain.to_bytes()
    loose = [token | {"special": False} for token in published()["added_tokens"]]
    for added in (loose, []):  # special tokens that are not marked as such, or only in the vocabulary
        tokenizer = text.load(json.dumps(published(added_tokens=added)).encode())
        assert tokenizer.specials == plain.specials
        assert tokenizer.encode_batch(HARD) == plain.encode_batch(HARD)


def test_a_byte_outside_the_vocabulary_is_unknown_not_lost():
    fields = published()
    del fields["model"]["vocab"]["z"]
    tokenizer = text.load(json.dumps(fields).encode())
    assert 3 in tokenizer.encode("azb")
    assert tokenizer.decode(tokenizer.encode("azb")) == "a \u2047 b"
    assert tokenizer.pieces([bart_vocab()["z"]]) == ["<unused>"]


def renamed(fields, changes):
    """`fields` with tokens of the vocabulary renamed, and the added tokens with them."""
    vocab = {changes.get(token, token): number for token, number in fields["model"]["vocab"].items()}
    return bpe_files.tokenizer_fields(vocab, MERGES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (renamed(published(), {"<pad>": "[PAD]"}), "<pad> = 1.* but here .*<pad> = absent"),
        (renamed(published(), {"<pad>": "</s>", "</s>": "<pad>"}), "<pad> = 2, </s> = 1"),
        (renamed(published(), {"<mask>": "[MASK]"}), "has no <mask> token"),
        (published(decoder=None), "decoder NoneType; only byte-level BPE"),
        (published(model={"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}), "model is WordLevel"),
        ({}, "not a tokenizer.json"),
        ([], "not a tokenizer.json"),
    ],
)
def test_unfit_tokenizer_json_is_refused(fields, message, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps(fields))
    with pytest.raises(text.TokenizerError, match=rf"odd\.json.*{message}"):
        text.read(tmp_path / "odd.json")


def test_errors_of_files_name_them(tmp_path):
    with pytest.raises(text.TokenizerError, match=r"cannot read .*absent\.json"):
        text.read(tmp_path / "absent.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        text.TokenizerError, match=r"must hold tokenizer\.json; or vocab\.json and merges\.txt; or .*nothing"
    ):
        text.read(empty)
    (write_hugging_face(tmp_path / "half") / "merges.txt").unlink()
    with pytest.raises(text.TokenizerError, match=r"it holds vocab\.json"):
        text.read(tmp_path / "half")
    broken = write_hugging_face(tmp_path / "broken")
    (broken / "merges.txt").write_text("#version: 0.2\na b\na never\n")
    with pytest.raises(text.TokenizerError, match=r"merges\.txt' line 3: 'a never' is not a pair"):
        text.read(broken)
    (broken / "vocab.json").write_text("{")
    with pytest.raises(text.TokenizerError, match=r"vocab\.json' is not JSON"):
        text.read(broken)
    (broken / "vocab.json").write_text("[1]")
    with pytest.raises(text.TokenizerError, match=r"vocab\.json' must be a JSON object"):
        text.read(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, "777 1"], "'777', which is not an id in encoder.json"),
        (lambda lines: lines[1:], "lacks 1 of encoder.json's tokens"),
        (lambda lines: [*lines, lines[0]], "is there twice"),
        (lambda lines: [*lines, "a b c"], "is not a word and a count"),
    ],
)
def test_fairseq_files_that_do_not_fit_are_refused(change, message, tmp_path):
    folder = write_fairseq(tmp_path / "fairseq")
    lines = (folder / "dict.txt").read_text().splitlines()
    (folder / "dict.txt").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(text.TokenizerError, match=rf"dict\.txt.*{message}"):
        text.read(folder)


def test_training_errors_name_the_fix():
    with pytest.raises(text.TokenizerError, match=r"vocab_size: 260 .* raise it to at least 261"):
        text.train(LINES, dataclasses.replace(CONFIG, vocab_size=260))
    with pytest.raises(text.TokenizerError, match="no text"):
        text.train([], CONFIG)
    largest = text.train(LINES, dataclasses.replace(CONFIG, vocab_size=5000))
    assert largest.vocab_size < 5000
    same = text.train(LINES, dataclasses.replace(CONFIG, vocab_size=largest.vocab_size))
    assert same.to_bytes() == largest.to_bytes()
    assert text.train(LINES, dataclasses.replace(CONFIG, vocab_size=261)).vocab_size == 261
