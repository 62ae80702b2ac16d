"""The built-in corpus: deterministic, disjoint, unambiguous, reordered."""

import pytest

from janus_jax import text
from janus_jax.config import TextConfig
from janus_jax.data import DataError, demo


@pytest.fixture(scope="module")
def corpus():
    return demo.generate("de", "en", (3000, 200, 200), 0)


def test_sizes_and_determinism(corpus):
    assert [len(split) for split in corpus] == [3000, 200, 200]
    assert demo.generate("de", "en", (3000, 200, 200), 0) == corpus
    assert demo.generate("de", "en", (3000, 200, 200), 1) != corpus
    # Held-out sentences do not depend on how much is trained on
    assert demo.generate("de", "en", (100, 200, 200), 0)[1:] == corpus[1:]


def test_no_source_or_target_occurs_twice(corpus):
    pairs = [pair for split in corpus for pair in split]
    assert len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("langs", [("de", "en"), ("en", "de"), ("ro", "en"), ("fr", "en"), ("en", "ja")])
def test_all_kinds_work_and_the_source_determines_the_target(langs):
    pairs = [pair for split in demo.generate(*langs, (2_000, 10, 10), 0) for pair in split]
    kinds = demo._kinds(*(demo._locale(lang, "") for lang in langs))
    # Each atom by itself: one source never has two targets
    for atoms in kinds.values():
        meaning = {}
        rng = demo.random.Random(0)
        for atom in atoms:
            for _ in range(400):
                source, target = atom(rng)
                assert meaning.setdefault(source, target) == target
    assert min(len(atoms) for atoms in kinds.values()) >= 3
    assert not any("  " in side or "\u00a0" in side or "\u202f" in side for pair in pairs for side in pair)


def test_rules_reorder():
    reordered = [rule for rule in demo._RULES if len(rule[0].split()) > 1]
    assert len(reordered) >= 8
    for _, source, target, _ in reordered:
        order = [[c for c in side if c.isdigit()] for side in (source, target)]
        assert sorted(order[0]) == sorted(order[1])
        assert order[0] != order[1]


def test_phrases_read_as_in_cldr(corpus):
    both = demo._AtomFactory(demo._locale("de", ""), demo._locale("en", ""))
    assert ("Deutschland", "Germany") in both._territories
    assert ("Rumänisch", "Romanian") in both._languages
    rng = demo.random.Random(0)
    money = [both.money(rng) for _ in range(300)]
    assert any(pair[0].endswith(" Euro") and pair[1] == pair[0].replace("Euro", "euros") for pair in money)
    relative = [both.relative(rng) for _ in range(500)]
    assert ("vor 3 Tagen", "3 days ago") in relative
    assert ("in 1 Stunde", "in 1 hour") in relative


def test_tokenizer_reproduces_every_sentence(corpus):
    lines = [side for split in corpus for pair in split for side in pair]
    tokenizer = text.train(lines, TextConfig(vocab_size=700))
    assert tokenizer.decode_batch(tokenizer.encode_batch(lines)) == lines


def test_errors():
    with pytest.raises(DataError, match="no locale 'xx'"):
        demo.generate("xx", "en", (1, 1, 1), 0)
    with pytest.raises(DataError, match="source language too"):
        demo.generate("en", "en", (1, 1, 1), 0)
    # A language of which CLDR lacks the names of languages and countries: the rules that need them are left out.
    train, *_ = demo.generate("gv", "en", (20, 1, 1), 0)
    assert len(train) == 20
