"""The generator: order, count, batching, limits; on a tiny model with random weights."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax import parallel
from janus_jax.config import ConfigError, DecodeConfig, ModelConfig, ParallelConfig, resolve
from janus_jax.decode import MODES, DecodeRequest, Generator
from janus_jax.decode.batching import bucket, full_rows, plan_batches
from janus_jax.decode.keywords import with_keywords
from janus_jax.decode.modes.autoregression import ar_limits
from janus_jax.model import Janus
from janus_jax.types import Specials
from tests import tiny
from tests.further import further

VOCAB = 24


class Letters:
    """A tokenizer whose tokens are letters."""

    specials = Specials()
    vocab_size = VOCAB

    def encode(self, line):
        return [5 + (ord(c) - ord("a")) % (VOCAB - 5) for c in line if not c.isspace()]

    encode_inside = encode

    def encode_batch(self, lines):
        return [self.encode(line) for line in lines]

    def pieces(self, ids):
        return [self.decode_batch([[i]])[0] for i in ids]

    def decode_batch(self, ids):
        return ["".join(chr(ord("a") + i - 5) if i >= 5 else "?" for i in line) for line in ids]


class Spaces(Letters):
    """Letters from 0, and the codes of white space."""

    def encode(self, line):
        return [ord(c) if c.isspace() else ord(c) - ord("a") for c in line]

    encode_inside = encode


@pytest.fixture(scope="module")
def generator():
    config = ModelConfig(
        vocab_size=VOCAB, d_model=16, ffn_dim=32, heads=2, encoder_layers=1, decoder_layers=1, max_positions=64,
        length_classes=32, vocab_multiple=16, dropout=0.0, ctc_ratio=1.5, dag_ratio=1.5,
    )  # fmt: skip
    net = Janus(config, Specials())

    @jax.jit
    def init(rng):
        # Ten times the usual spread: clear preferences, so that batching cannot tip a choice.
        return jax.tree.map(lambda x: x * 10 if x.ndim == 2 else x, net.init(rng))

    params = init(jax.random.key(0))
    decode = {
        "batch_tokens": 256,
        "ar": {"beam": 2, "max_length_a": 1.0, "max_length_b": 4},
        "nar": {"passes": 3, "length_beam": 2},
        "ctc": {"beam": 2},
        "dag": {"search": "beam", "beam": 2},
        "speculative": {"draft": "always"},
        "infill": {"draft": "always"},
    }
    return Generator(
        net, params, Letters(), resolve({"decode": decode}).decode, max_source_length=32, max_target_length=32
    )


LINES = ["hello", "", "a", "quitealongerlineofletters", "   ", "bcd", "hello", "zz top", "x" * 30, "defg"]


def inputs_of(mode, lines=LINES):
    """Inputs that a mode requires beside the lines: for infilling a target with gaps for each line."""
    return {"targets": [gapped(line) for line in lines]} if mode == "infill" else {}


def gapped(line):
    return "<mask>".join(line[::3]) + "<mask>" if line.strip() else "ab"


@pytest.mark.parametrize("mode", [further(mode) if mode == "infill" else mode for mode in MODES])
def test_order_and_count_are_kept_and_batching_changes_nothing(generator, mode):
    together = generator.generate(LINES, mode=mode, **inputs_of(mode))
    assert len(together) == len(LINES)
    # Equal sentences of one batch; rounding may tell their places in it apart.
    first, again = (dataclasses.replace(together[place], token_scores=[]) for place in (0, 6))
    assert first == again
    np.testing.assert_allclose(together[0].token_scores, together[6].token_scores, atol=1e-5)
    for line, output in zip(LINES, together, strict=True):
        if not line.strip():
            assert (output.text, output.score, output.tokens) == ("", 0.0, [])
        else:
            assert not set(output.tokens) & {0, 1, 2, 4}
            assert output.text == Letters().decode_batch([output.tokens])[0]
    backwards = generator.generate(LINES[::-1], mode=mode, batch_tokens=64, **inputs_of(mode, LINES[::-1]))[::-1]
    same(together, backwards)


def same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("mode", [mode if mode in ("ar", "nar") else further(mode) for mode in MODES])
def test_several_devices_share_the_sentences_and_change_nothing(generator, mode):
    mesh = parallel.make_mesh(ParallelConfig(data=4), jax.devices()[:4])
    shared = Generator(
        generator.net, generator.params, Letters(), generator.decode_config, max_source_length=32, max_target_length=32,
        mesh=mesh,
    )  # fmt: skip
    # 10 lines do not divide by 4.
    same(shared.generate(LINES, mode=mode, **inputs_of(mode)), generator.generate(LINES, mode=mode, **inputs_of(mode)))
    with jax.set_mesh(mesh):
        drafts = {"draft": "always"} if mode in ("speculative", "infill") else {}
        decode = with_keywords(DecodeConfig(), {"mode": mode, **drafts})
        request = DecodeRequest(generator.net, shared.params, np.full((8, 16), 7, np.int32), decode, 20)
        request = dataclasses.replace(request, start=np.full((8, 8), 4, np.int32) if mode == "infill" else None)
        hypotheses = MODES[mode].run(request).hypotheses
    assert {shard.data.shape[0] for shard in hypotheses.tokens.addressable_shards} == {2}


def test_marks_of_sources_are_taken_out_as_for_training(generator):
    one = Generator(
        generator.net,
        generator.params,
        Spaces(),
        generator.decode_config,
        source_marks=(" ##", "<S_SEP>"),
        one_space=True,
    )
    assert one.encoded(["a <S_SEP>\tb "]) == [[0, 32, 1]]
    one.one_space = False
    assert one.encoded(["a <S_SEP>\tb "]) == [[0, 32, 9, 1, 32]]
    one.one_space, one.tokenizer = True, Letters()
    marked, plain = ["hel ##lo wor ##ld", "a <S_SEP> b"], ["hello world", "a b"]
    assert [output.text for output in one.generate(marked)] == [output.text for output in generator.generate(plain)]
    assert [output.text for output in generator.generate(marked)] != [
        output.text for output in generator.generate(plain)
    ]


def test_white_space_of_all_texts_is_that_of_training(generator, monkeypatch):
    one = Generator(generator.net, generator.params, Spaces(), generator.decode_config, one_space=True)
    monkeypatch.setattr(one, "generate_ids", lambda _, *, prefixes, targets, **__: prefixes or targets)
    monkeypatch.setattr(one, "_decode", lambda sentences, *_: sentences)
    assert one.generate(["f"], prefixes=[" f \t\u00a0g "]) == [[5, 32, 6]]
    assert one.generate(["f"], targets=["f  <mask>\t\tg "]) == [[5, 4, 32, 6]]
    scored = one.score_infills(["f"], ["f\t <mask>\u2003g"], [["h\t i"]])
    assert (scored.starts, scored.fillings) == ([[0, 5, 4, 4, 4, 4, 32, 6, 2]], [[32, 7, 32, 8]])
    one.one_space = False
    assert one.generate(["f"], prefixes=[" f  g"]) == [[32, 5, 32, 32, 6]]


def test_a_mode_that_was_not_trained_is_an_error_unless_it_is_allowed(generator):
    one = Generator(
        generator.net,
        generator.params,
        Letters(),
        generator.decode_config,
        max_target_length=32,
        trained=("nar", "ctc"),
    )
    for settings, message in (
        (
            {"mode": "ar"},
            "mode: ar, but this model was trained only for nar or ctc; choose that, or set allow_untrained",
        ),
        (
            {"mode": "ctc", "rerank": "ar"},
            "rerank: ar, but this model was trained only for nar or ctc; set rerank to none",
        ),
    ):
        for call in (one.generate, one.check):
            with pytest.raises(ConfigError, match=message):
                call(["hello"], **settings)
        allowed = one.generate(["hello"], allow_untrained=True, **settings)
        assert allowed == generator.generate(["hello"], **settings)
    assert one.generate(["hello"], mode="ctc") == generator.generate(["hello"], mode="ctc")


def test_rows_that_were_not_trained_draft_only_if_it_is_allowed(generator):
    one = Generator(
        generator.net, generator.params, Letters(), generator.decode_config, max_target_length=32,
        trained=("ar", "ctc", "speculative"),
    )  # fmt: skip
    settings = {"mode": "speculative", "draft_from": "nar"}
    with pytest.raises(
        ConfigError, match="draft_from: nar, but this model was trained only for ar or ctc or speculative"
    ):
        one.settings(settings)
    for allowed in ({"allow_untrained": True}, {"draft": "never"}, {"draft_from": "ctc"}, {"draft_from": "auto"}):
        one.settings({**settings, **allowed})


def test_no_lines_give_no_outputs(generator):
    assert generator.generate([]) == []
    assert [o.text for o in generator.generate(["", ""])] == ["", ""]


def test_long_lines_are_cut_with_one_warning(generator, caplog):
    long = "abcde" * 20
    with caplog.at_level(logging.WARNING):
        outputs = generator.generate([long, "ab", long[:30], long], beam=1)
    assert len(caplog.records) == 1
    assert "2 of 4" in caplog.text
    assert "line 1, 4" in caplog.text
    assert outputs[0] == outputs[2] == outputs[3]


def test_ids_may_carry_their_frame_and_padding(generator):
    bare = generator.generate_ids([[7, 8, 9], [6]])
    framed = generator.generate_ids(np.asarray([[0, 7, 8, 9, 2, 1], [0, 6, 2, 1, 1, 1]]))
    assert bare == framed


def test_outputs_keep_to_their_limits(generator):
    outputs = generator.generate(["abcdef", "ab"], beam=1, max_length_a=0.5, max_length_b=1)
    assert [len(o.tokens) <= limit for o, limit in zip(outputs, (4, 2), strict=True)] == [True, True]
    assert all(len(o.tokens) <= 30 for o in generator.generate(["a" * 30], mode="nar"))


def test_greedy_is_teacher_forcing_step_by_step(generator):
    output = generator.generate(["hello"], beam=1)[0]
    net, params, special = generator.net, generator.params, generator.net.specials
    source = np.asarray([[0, *Letters().encode_batch(["hello"])[0], 2]])
    logits = np.array(tiny.ar_logits(net, params, source, np.asarray([[special.bos, *output.tokens]])))[0]
    log_probs = log_softmax(logits, axis=-1)
    logits[:, [special.bos, special.pad, special.mask]] = -np.inf
    logits[0, special.eos] = -np.inf
    assert logits.argmax(-1)[:-1].tolist() == output.tokens
    chosen = [*output.tokens, special.eos]
    scores = log_probs[np.arange(len(chosen)), chosen]
    assert output.score == pytest.approx(scores.mean(), abs=1e-4)
    np.testing.assert_allclose(output.token_scores, scores, atol=1e-4)


def test_token_scores_are_log_probabilities_or_absent(generator):
    settings = [
        {"mode": "ar", "beam": 2}, {"mode": "nar"}, {"mode": "ctc", "beam": 1}, {"mode": "dag", "search": "viterbi"},
        {"mode": "ctc", "beam": 2, "rerank": "ar"}, {"mode": "ctc", "beam": 2}, {"mode": "dag", "search": "beam"},
    ]  # fmt: skip
    known = []
    for setting in settings:
        output = generator.generate(LINES, **setting)[0]
        known.append(bool(output.token_scores))
        if known[-1]:
            assert len(output.token_scores) == len(output.tokens) + 1
            assert all(score < 0 for score in output.token_scores[:-1])
    assert known == [True] * 5 + [False] * 2


@pytest.mark.parametrize("draft_from", ["ctc", "nar"])
def test_a_trace_of_speculation_records_what_each_pass_verified_and_emitted(generator, draft_from):
    settings = {"mode": "speculative", "draft_from": draft_from}
    plain = generator.generate(LINES, **settings)
    accepted = 0
    for line, output, untraced in zip(LINES, generator.generate(LINES, trace=True, **settings), plain, strict=True):
        assert output.tokens == untraced.tokens
        emitted = [piece for one in output.trace for piece in one["tokens"]]
        end = generator.tokenizer.pieces([generator.net.specials.eos])
        assert emitted == ([*generator.tokenizer.pieces(output.tokens), *end] if line.strip() else [])
        for one in output.trace:
            accepted += one["accepted"]
            assert len(one["tokens"]) == one["accepted"] + 1
            assert one["tokens"][: one["accepted"]] == one["drafted"][: one["accepted"]]
            # The token behind the accepted ones differs from the draft, but at its end and the output's.
            rest = one["drafted"][one["accepted"] :]
            assert not rest or rest[0] != one["tokens"][-1] or one["tokens"][-1:] == end
    assert accepted == sum(output.statistics.get("drafted", 0) for output in plain) > 0
    assert generator.generate(LINES, trace=True, mode="speculative", draft="never")[0].trace == ()


def test_a_second_generator_does_not_compile_again(generator):
    from janus_jax.decode.modes import autoregression as module

    generator.generate(["hello"], beam=1)
    compiled = module._run_ar._cache_size()
    halves = jax.tree.map(lambda x: x * np.float32(0.5), jax.device_get(generator.params))
    other = Generator(
        dataclasses.replace(generator.net), jax.device_put(halves), Letters(),
        generator.decode_config, max_source_length=32, max_target_length=32,
    )  # fmt: skip
    other.generate(["world"], beam=1)
    assert module._run_ar._cache_size() == compiled


def test_limits_of_a_caller_share_programs(generator):
    from janus_jax.decode.modes import autoregression as module

    def decode(limit):
        return generator.generate(["hello"], beam=1, min_length=40, max_length_a=0, max_length_b=limit)[0]

    first = decode(17)
    compiled = module._run_ar._cache_size()
    assert [len(output.tokens) for output in (first, decode(18), decode(19))] == [17, 18, 19]
    assert module._run_ar._cache_size() == compiled


def another(generator, **settings):
    """A generator of the same model."""
    limits = {"max_source_length": 32, "max_target_length": 32}
    return Generator(generator.net, generator.params, Letters(), generator.decode_config, **limits, **settings)


def test_drafts_learn_whatever_the_seed_of_samples(generator):
    generator = another(generator)
    for seed in range(3):
        generator.generate(["hello"], mode="ar", sample=True, seed=seed)
    assert not generator._policies
    for seed in range(3):
        generator.generate(["hello"], mode="speculative", draft_from="nar", sample=True, seed=seed, draft="always")
    assert len(generator._policies) == 1


def test_a_check_refuses_what_decoding_refuses(generator):
    generator.check(iter(["hello"]), mode="ar")
    with pytest.raises(TypeError, match="lines: 'hello' is a plain string"):
        generator.check("hello", mode="ar")


def test_white_space_and_marks_belong_to_the_fingerprint(generator, monkeypatch):
    monkeypatch.setattr(Letters, "to_bytes", lambda _: b"letters", raising=False)
    others = ({}, {"one_space": True}, {"source_marks": ("[X_SEP]",)})
    assert len({another(generator, **settings).fingerprint() for settings in others}) == 3


def test_a_second_batch_of_drafts_does_not_compile_again(generator):
    from janus_jax.decode.modes import speculative as module

    committed = Generator(
        generator.net, jax.device_put(generator.params, jax.devices()[0]), Letters(), generator.decode_config,
        max_source_length=32, max_target_length=32,
    )  # fmt: skip
    committed.generate(["hello"], mode="speculative")
    compiled = module._run_speculative._cache_size()
    committed.generate(["hello"], mode="speculative")
    assert module._run_speculative._cache_size() == compiled


def test_progress_counts_every_line(generator):
    done = []
    generator.generate(LINES, progress=done.append, beam=1)
    assert sum(done) == len(LINES)


def test_infilling_keeps_the_tokens_around_the_gaps(generator):
    lines, targets = ["hello", "abc", "zz top"], ["a<mask>c <mask> <mask>f", "nothing", "<mask>"]
    outputs = generator.generate(lines, mode="infill", targets=targets)
    fixed = [Letters().encode(target.replace("<mask>", "{")) for target in targets]  # "{" follows "z"
    for output, target, ids in zip(outputs, targets, fixed, strict=True):
        gaps = [at for at, mark in enumerate(target.replace(" ", "").replace("<mask>", "{")) if mark == "{"]
        assert [t for at, t in enumerate(output.tokens) if at not in gaps] == [
            t for at, t in enumerate(ids) if at not in gaps
        ]
        assert len(output.tokens) == len(ids)
    by_nar = generator.generate(lines, mode="nar", targets=targets)
    assert [len(output.tokens) for output in by_nar] == [len(ids) for ids in fixed]
    # The scores of the search equal those of scoring its output.
    filling = [
        "".join(Letters().decode_batch([[outputs[0].tokens[at]]])[0] for at in places) for places in ([1], [3, 4])
    ]
    scored = generator.score_infills(lines[:1], ["a<mask>c <mask>f"], [filling])
    assert scored[0].tokens == outputs[0].tokens
    assert scored[0].score == pytest.approx(outputs[0].score, abs=1e-4)
    assert generator.score_infills(lines[:1], ["a<mask>c <mask>f"], [["q", "rs"]])[0].score < scored[0].score


def test_given_tokens_stay_though_repeats_are_merged(generator):
    output = generator.generate(["hello"], mode="nar", targets=["aa<mask>bb"], merge_repeats=True)[0]
    assert len(output.tokens) == 5
    assert output.tokens[:2] + output.tokens[3:] == Letters().encode("aabb")


def test_a_prefix_that_is_cut_is_named(generator, caplog):
    generator.generate(["a", "b"], prefixes=["c", "d" * 40], beam=1)
    assert "1 of 2 prefixes are longer than 30 tokens and were cut: line 2" in caplog.text


def test_sources_with_unknown_tokens_are_named(generator, caplog):
    unknown = generator.net.specials.unk
    generator.generate_ids([[7, 8], [7, unknown], [unknown]], beam=1)
    assert "2 of 3 sources have text that the vocabulary lacks, read as unknown tokens: line 2, 3" in caplog.text


def test_a_setting_is_named_as_the_caller_names_it(generator):
    with pytest.raises(ConfigError, match=r"^nbest: 3 exceeds beam 1; raise beam or lower nbest"):
        generator.generate(["a"], mode="ctc", beam=1, nbest=3)


def test_infilling_without_targets_or_texts_is_an_error(generator):
    with pytest.raises(ValueError, match="targets: mode infill needs them; give one with <mask> in it"):
        generator.generate(["a"], mode="infill")
    with pytest.raises(ValueError, match="line 2: 1 texts for 2 gaps"):
        generator.score_infills(["a", "b"], ["<mask>", "<mask>b<mask>"], [["x"], ["y"]])
    with pytest.raises(ValueError, match="nothing to fill gap 1 with"):
        generator.score_infills(["a"], ["<mask>"], [[" "]])
    with pytest.raises(ValueError, match="40 tokens; at most 30"):
        generator.score_infills(["a"], ["<mask>"], [["x" * 40]])


def test_wrong_settings_are_named(generator):
    with pytest.raises(ConfigError, match=r"beem: mode ar has no such setting; did you mean beam"):
        generator.generate(["a"], beem=3)
    with pytest.raises(ConfigError, match=r"^beam: 0 must be at least 1"):
        generator.generate(["a"], beam=0)
    with pytest.raises(ConfigError, match="passes: mode ar has no such setting; it belongs to mode nar"):
        generator.generate(["a"], passes=3)
    with pytest.raises(ConfigError, match=r"^mode: 'narr' is not one of"):
        generator.generate(["a"], mode="narr")
    with pytest.raises(ValueError, match="length_beam"):
        generator.generate(["a"], mode="nar", length_beam=40)


def test_plans_hold_every_sentence_once_within_their_bounds():
    lengths = np.random.default_rng(0).integers(3, 120, 500).tolist()
    plan = plan_batches(lengths, 2048, 3)
    assert sorted(i for _, _, members in plan for i in members) == list(range(500))
    for size, rows, members in plan:
        assert len(members) <= rows
        assert max(lengths[i] for i in members) <= size
        assert rows == 1 or rows * size * 3 <= 2048
    assert len({(size, rows) for size, rows, _ in plan}) <= 5
    assert plan_batches([], 2048, 3) == []


def test_buckets_and_rows():
    assert [bucket(n) for n in (1, 16, 17, 33)] == [16, 16, 32, 64]
    assert [bucket(n, at_least=8, halves=True) for n in (2, 9, 13, 17, 25)] == [8, 12, 16, 24, 32]
    assert [full_rows(32, t, 1) for t in (16, 100, 1000)] == [1, 2, 24]
    assert [full_rows(32, t, 1, ways=4) for t in (16, 100, 1000)] == [4, 4, 16]


def test_a_plain_string_is_no_list_of_texts(generator):
    cases = [
        (lambda g: g.generate("polen"), "lines: 'polen' is a plain string; pass a list of texts, \\['polen'\\]"),
        (lambda g: g.generate(["a"], prefixes="a"), "prefixes: 'a' is a plain string"),
        (lambda g: g.generate(["a"], mode="nar", targets="a"), "targets: 'a' is a plain string"),
        (lambda g: g.generate(["a", 3]), r"lines\[1\]: 3 is no text"),
        (lambda g: g.generate(b"polen"), "lines: b'polen' is a plain string"),
        (lambda g: g.generate_ids("polen"), "sources: .* is no list of token ids"),
        (lambda g: g.generate_ids(["polen"]), "sources: 'polen' is no list of token ids"),
        (lambda g: g.generate_ids([5, 6]), "sources: 5 is no list of token ids"),
        (lambda g: g.generate_ids([[5]], prefixes=[5]), "prefixes: 5 is no list"),
        (lambda g: g.score_infills("ab", ["<mask>"] * 2, [["a"]] * 2), "lines: 'ab' is a plain string"),
        (lambda g: g.score_infills(["ab"], "<mask>", [["a"]]), "targets: '<mask>' is a plain string"),
        (lambda g: g.score_infills(["ab"], ["<mask>"], "a"), "infills: a plain string"),
        (lambda g: g.score_infills(["ab"], ["<mask>"], ["a"]), r"infills\[0\]: 'a' is a plain string"),
    ]
    for call, message in cases:
        with pytest.raises(TypeError, match=message):
            call(generator)
    for bad in (VOCAB, -1, 10**12):
        with pytest.raises(ValueError, match="sources: line 2 has a token id outside the vocabulary, 0 to 23"):
            generator.generate_ids([[5], [6, bad]])


def test_limits_beyond_32_bits_are_those_of_the_model(generator):
    source = np.array([[0, 5, 6, 7, 2, 1], [1] * 6], np.int32)
    request = DecodeRequest(generator.net, generator.params, source, generator.decode_config, 32)
    for changes in ({"max_length_b": 2**31 - 1}, {"max_length_a": 2.0**31 - 1}):
        settings = with_keywords(DecodeConfig(), changes).ar
        limit, allowed = ar_limits(request, settings)
        assert (limit, allowed.tolist()) == (31, [31, 0])


@pytest.mark.parametrize(
    "changes",
    [
        {"beam": 100_000}, {"max_length_a": 1e30}, {"max_length_b": 2**31}, {"min_length": 2**31}, {"lenpen": 1e30},
        {"no_repeat_ngram": 2**31}, {"temperature": 1e-30}, {"top_k": 2**31}, {"seed": 3_000_000_000}, {"nbest": 100_000},
        {"mode": "nar", "passes": 100_000}, {"mode": "nar", "length_beam": 100_000}, {"mode": "ctc", "beam": 100_000},
        {"mode": "ctc", "tokens": 100_000}, {"mode": "ctc", "blank_penalty": 1e30}, {"mode": "dag", "beam": 100_000},
        {"mode": "dag", "tokens": 100_000}, {"mode": "dag", "beta": 1e30}, {"mode": "dag", "length_beta": 1e30},
        {"mode": "speculative", "draft_passes": 100_000}, {"mode": "speculative", "draft_lengths": 100_000},
        {"mode": "infill", "accept_top": 2**31}, {"mode": "infill", "accept_gap": 1e30}, {"lenpen": float("inf")},
        {"temperature": float("nan")},
    ],
)  # fmt: skip
def test_settings_that_no_search_can_use_are_out_of_range(changes):
    with pytest.raises(ConfigError, match=r"config\.decode\.\S+: .* (must be at least .* and at most|finite)"):
        with_keywords(DecodeConfig(), changes)
