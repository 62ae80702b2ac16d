"""Speculative search equals greedy search, whatever is drafted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from janus_jax.config import DecodeConfig
from janus_jax.decode import MODES, DecodeRequest
from janus_jax.decode.keywords import with_keywords
from janus_jax.decode.modes import drafting
from janus_jax.decode.modes.autoregression import cache_stages
from janus_jax.decode.modes.drafting import costs_of_searches, seconds_per_round
from janus_jax.decode.modes.speculative import costs_of_best_width
from janus_jax.decode.search.constraints import Constraints
from janus_jax.decode.search.draft_policy import FIRST_PAUSE, DraftPolicy, PassCosts
from janus_jax.decode.search.drafters import HeadDrafts, WholeDrafts
from janus_jax.decode.search.drafts import Acceptance, realign, without_stutter
from janus_jax.decode.search.greedy import greedy_search
from janus_jax.decode.search.sampling import sampler
from janus_jax.decode.search.verify import Statistics, speculative_search
from janus_jax.decode.search.vocab import forbid
from janus_jax.model import padded_vocab
from janus_jax.types import Specials
from tests import tiny
from tests.clock import Clock
from tests.further import further

SPECIALS = Specials()
VOCAB, LIMIT, SLOTS = 24, 20, 16
MAX_LENGTHS = np.asarray([20, 3, 0, 11, 20, 20])
CHEAP = PassCosts(step=1.0, draft=0.1, verify=(0.2, 0.4), widths=(3, SLOTS - 1))


def toy(tokens, cache):
    """Logits [N, k, V] that depend on the sentence and on everything fed so far; tokens [N, k]."""
    count = tokens.shape[1]
    rows = jnp.arange(tokens.shape[0])[:, None]
    at = cache["length"][:, None] + jnp.arange(count)
    history = cache["tokens"].at[rows, at].set(tokens, mode="drop")
    known = jnp.where(jnp.arange(history.shape[1]) < (cache["length"] + count)[:, None], history, 0)
    weighted = known * (1.0 + 0.37 * jnp.arange(history.shape[1]))
    sums = jnp.take_along_axis(jnp.cumsum(weighted, axis=1), jnp.minimum(at, history.shape[1] - 1), axis=1)
    phase = sums[..., None] * 0.7 + cache["sentence"][:, None, None] + 1.3 * jnp.arange(VOCAB)
    # eos grows likelier with the length
    logits = (3.0 * jnp.sin(phase)).at[..., SPECIALS.eos].add(at * 0.15)
    return logits, {**cache, "tokens": history, "length": cache["length"] + count}


def toy_cache(drafts=1):
    rows = len(MAX_LENGTHS) * drafts
    return {
        "tokens": jnp.zeros((rows, LIMIT + SLOTS), jnp.int32),
        "length": jnp.zeros(rows, jnp.int32),
        "sentence": jnp.repeat(jnp.arange(len(MAX_LENGTHS)), drafts),
    }


@functools.cache
def greedy():
    """Must be called once outside JAX's transformations before it is called inside."""

    def step(tokens, cache):
        logits, cache = toy(tokens, cache)
        return logits[:, 0], cache

    def search():
        return greedy_search(
            step,
            toy_cache(),
            max_lengths=jnp.asarray(MAX_LENGTHS),
            limit=LIMIT,
            specials=SPECIALS,
            constraints=Constraints.default(SPECIALS, VOCAB, min_length=2),
        )

    return jax.device_get(jax.jit(search)())


def toy_search(drafter, verify, project, drafts=1, **settings):
    """Speculative search of the toy; call it under `jax.jit`."""
    return speculative_search(
        drafter,
        verify,
        project,
        lambda cache, length: {**cache, "length": length},
        lambda cache, rows: jax.tree.map(lambda x: x[rows], cache),
        toy_cache(drafts),
        max_lengths=jnp.asarray(MAX_LENGTHS),
        limit=LIMIT,
        specials=SPECIALS,
        constraints=Constraints.default(SPECIALS, VOCAB, min_length=2),
        **settings,
    )


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="acceptance")
def search_with_whole_drafts(draft, drafts, **settings):
    lengths = np.linspace(6, SLOTS, len(MAX_LENGTHS) * drafts).astype(np.int32).reshape(-1, drafts)
    drafter = WholeDrafts(draft, jnp.asarray(lengths), SLOTS, SPECIALS)
    return toy_search(drafter, toy, lambda rows: rows, drafts, **settings)


def speculative(draft, drafts=1, costs=CHEAP, acceptance=None, policy=None):
    greedy()
    settings = {"costs": costs, "acceptance": acceptance, "policy": policy or DraftPolicy.initial()}
    return jax.device_get(search_with_whole_drafts(draft, drafts, **settings))


def perfect(tokens, lengths):
    """Drafts what greedy search would emit."""
    want = jnp.pad(greedy().tokens[:, 0], ((0, 0), (1, 0)))[:, None, :SLOTS]
    return jnp.where(tokens == SPECIALS.mask, want, tokens)


def useless(tokens, lengths):
    return jnp.where(tokens == SPECIALS.mask, SPECIALS.unk, tokens)


def half_right(tokens, lengths):
    """Every third token is wrong, a different one in each draft."""
    slot, turn = jnp.arange(SLOTS), jnp.arange(tokens.shape[1])[:, None]
    return jnp.where((slot + turn) % 3 == 0, useless(tokens, lengths), perfect(tokens, lengths))


@pytest.mark.parametrize("drafts", [1, 3])
@pytest.mark.parametrize("draft", [perfect, useless, half_right])
def test_output_equals_that_of_greedy_search(draft, drafts):
    expected = greedy()
    assert len({tuple(row) for row in expected.tokens[:, 0].tolist()}) > 3, "the toy must not be trivial"
    result, did, _ = speculative(draft, drafts)
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    np.testing.assert_array_equal(result.lengths, expected.lengths)
    np.testing.assert_allclose(result.token_scores, expected.token_scores, atol=1e-5)
    # A round emits what it had accepted and one token more.
    np.testing.assert_array_equal(did.rounds + did.drafted + did.steps, did.tokens)
    np.testing.assert_array_equal(did.tokens, expected.lengths[:, 0])


@jax.jit
def search_with_heads(want, right, policy, before):
    """Speculative search with heads that draft the first `right` tokens of `want`, and the mask behind them."""

    def step(row, token):
        # A row holds the number of tokens emitted before it, and the head's number.
        distance = row[:, 1:2] + 1
        at = (row[:, :1] + distance).astype(jnp.int32)
        drafted = jnp.take_along_axis(want, jnp.minimum(at, LIMIT - 1), axis=1)
        before = jnp.where(at > 0, jnp.take_along_axis(want, jnp.clip(at - 1, 0, LIMIT - 1), axis=1), SPECIALS.bos)
        drafted = jnp.where((distance <= right) & (token[:, None] == before), drafted, SPECIALS.mask)
        return row.at[:, 1:3].set(jnp.concatenate([distance, drafted], axis=1))

    def verify(tokens, cache):
        logits, longer = toy(tokens, cache)
        at = cache["length"][:, None] + jnp.arange(tokens.shape[1])
        return jnp.concatenate([at[..., None] * 1.0, jnp.zeros((*at.shape, 2)), logits], axis=-1), longer

    nothing = jnp.zeros((len(MAX_LENGTHS), 3 + VOCAB)).at[:, 0].set(-1.0)  # no token stands before the first
    drafter = HeadDrafts(nothing, step, lambda row: row[:, 2].astype(jnp.int32), SPECIALS)
    costs = PassCosts(step=1.0, draft=0.0, verify=(1.9,), widths=(4,), before=before)
    return toy_search(drafter, verify, lambda rows: rows[..., 3:], costs=costs, policy=policy)


def toy_with_heads(right, policy=None, before=0.0):
    """Speculative search with heads that draft what greedy search emits in the first `right` places, and the mask behind them."""
    want = greedy().tokens[:, 0]
    return jax.device_get(search_with_heads(want, right, policy or DraftPolicy.initial(), before))


@pytest.mark.parametrize("right", [0, 1, 3, 4])
def test_heads_draft_behind_the_token_that_was_emitted_last(right):
    expected = greedy()
    result, did, policy = toy_with_heads(right)
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    np.testing.assert_array_equal(did.rounds + did.drafted, did.tokens)
    np.testing.assert_array_equal(did.rounds, -(-did.tokens // (right + 1)))
    assert did.rounds.max() > 1
    assert int(did.steps.max()) == 0
    rounds, drafted = (int(x.sum()) for x in (did.rounds, did.drafted))
    # A search of 8 tokens: 8 rounds of 1.9 steps lose 7.2 steps, so that the next searches do without drafts.
    assert int(policy.pause) == (FIRST_PAUSE if right == 0 else 0)
    rate = float(policy.expected / (1 + policy.expected))
    # Of four drafted tokens so many are accepted at this rate, which is at most 0.95.
    of_four = sum(rate**number for number in (1, 2, 3, 4))
    np.testing.assert_allclose(of_four, min(drafted / rounds, sum(0.95**n for n in (1, 2, 3, 4))), atol=1e-5)


def test_searches_that_lose_time_are_followed_by_longer_and_longer_pauses_until_drafts_pay():
    policy, pauses = DraftPolicy.initial(), []
    for right in (0, 0, 0, 4, 4):
        _, _, policy = toy_with_heads(right, dataclasses.replace(policy, pause=np.int32(0)))
        pauses.append(int(policy.pause))
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 0, 0]
    assert int(policy.next_pause) == FIRST_PAUSE


def test_the_pass_before_the_first_round_is_a_cost():
    # 8 tokens in at least 2 rounds of 1.9 steps save 4.2 steps at most.
    assert int(toy_with_heads(4, before=2.0)[2].pause) == 0
    result, _, policy = toy_with_heads(4, before=9.0)
    assert int(policy.pause) == FIRST_PAUSE
    np.testing.assert_array_equal(result.tokens, greedy().tokens)


def test_good_drafts_save_passes_and_bad_ones_cost_few():
    _, good, _ = speculative(perfect)
    # The last token may lie behind the end of the draft.
    assert ((good.rounds + good.steps)[MAX_LENGTHS > 3] <= 5).all()
    _, bad, _ = speculative(useless, costs=PassCosts(step=1.0, draft=3.0, verify=(2.0,), widths=(8,)))
    assert int(bad.drafted.max()) <= 1  # the end of a sentence may be guessed
    # A pause lies between drafts that fail.
    assert (bad.rounds <= 1 + bad.steps // FIRST_PAUSE).all()


def test_drafts_that_cannot_pay_are_never_made():
    _, did, _ = speculative(perfect, costs=PassCosts(step=1.0, draft=9.0, verify=(4.0, 8.0), widths=(4, 15)))
    assert int(did.drafts.max()) == 0


def test_the_next_search_does_not_repeat_failed_drafts():
    costs = PassCosts(step=1.0, draft=3.0, verify=(2.0,), widths=(8,))
    policy, drafts = DraftPolicy.initial(), []
    for _ in range(6):
        result, did, policy = speculative(useless, costs=costs, policy=policy)
        drafts.append(int(did.drafts.max()))
        np.testing.assert_array_equal(result.tokens, greedy().tokens)
    # 8 steps a search, pauses of 16 and 32 steps
    assert drafts[0] == 1
    assert sum(drafts[1:]) == 1
    # After good drafts the pauses are short again.
    _, did, policy = speculative(perfect, policy=dataclasses.replace(policy, pause=np.int32(0)))
    assert int(did.drafted.max()) > 3
    assert int(policy.next_pause) == FIRST_PAUSE


def test_the_wide_verification_is_chosen_after_all_of_a_narrow_one_was_accepted():
    costs = PassCosts(step=1.0, draft=1.0, verify=(1.2, 1.5), widths=(2, SLOTS - 1))
    _, did, _ = speculative(perfect, costs=costs)
    assert ((did.rounds + did.steps)[MAX_LENGTHS > 10] <= 6).all()


def test_costs_between_a_step_and_the_widest_verification_are_linear():
    costs = PassCosts.linear(1.0, 4.0, 2.0, (15, 5))
    assert costs.widths == (5, 15)
    assert costs.verify == pytest.approx((2.0, 4.0))
    # 5 accepted: (5+1) steps for 2 of verifying and 2 of drafting, or for 4 and 2.
    gains = jax.jit(PassCosts.gains)
    np.testing.assert_allclose(gains(costs, np.float32(5.0), True), [1.5, 1.0])
    np.testing.assert_allclose(gains(costs, np.float32(15.0), False), [3.0, 4.0])
    can_pay = jax.jit(PassCosts.can_pay)
    assert bool(can_pay(costs))
    assert float(jax.jit(PassCosts.in_steps)(costs, np.int32(1), np.bool_(True))) == 6.0
    assert not bool(can_pay(PassCosts.linear(1.0, 16.0, 2.0, (15,))))


@pytest.mark.parametrize(
    ("expected", "narrow", "chosen", "measured"),
    [
        (30.0, 1.0, 8, [8]),  # the wide one gains most, however cheap the narrow one is
        (-1.0, 1.0, 8, [8]),  # not known: as many as are verified
        (2.0, 2.5, 4, [8, 4]),
        (3.0, 3.6, 8, [8, 4]),  # 3.1 tokens for 3.6 seconds, or 3.7 for 4
        (2.0, 4.5, 8, [8, 4]),  # the narrow one costs more than it seemed to
    ],
)
def test_a_width_is_measured_if_it_seems_to_gain_more(expected, narrow, chosen, measured):
    seconds, asked = {8: 4.0, 4: narrow}, []

    def costs_of_width(width):
        asked.append(width)
        return PassCosts(1.0, 0.0, (seconds[width],), (width,), 0.5)

    best = costs_of_best_width((4, 8), expected, costs_of_width)
    assert (best.widths, best.verify, best.before) == ((chosen,), (seconds[chosen],), 0.5)
    assert asked == measured


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr(drafting, "time", clock)
    return clock


def test_costs_of_searches_are_those_of_their_passes(clock):
    def greedy(empty):
        clock.now += 0.01 if empty else 0.06
        return np.zeros(1), np.array([5, 2])

    def with_drafts(empty):
        clock.now += 0.04 if empty else 0.12
        none = np.zeros(2, np.int32)
        made = np.array([0 if empty else 3, 0])
        counts = Statistics(rounds=made, drafts=none, drafted=none, steps=none, tokens=none)
        return np.zeros(1), counts, DraftPolicy.initial()

    costs = costs_of_searches(greedy, with_drafts, 4)
    assert (costs.widths, costs.draft) == ((4,), 0.0)
    assert costs.step == pytest.approx((0.06 - 0.01) / 5)
    assert costs.verify[0] == pytest.approx((0.12 - 0.04) / 3)
    assert costs.before == pytest.approx(0.04 - 0.01)
    assert costs_of_searches(lambda empty: (greedy(empty)[0], np.array([1, 1])), with_drafts, 4) is None


def test_a_round_is_timed_without_the_time_around_the_rounds(clock):
    def call(rounds):
        clock.now += 0.03 + 0.01 * rounds

    assert seconds_per_round(call) == pytest.approx(0.01)


def test_relaxed_acceptance_accepts_tokens_that_ar_scores_nearly_as_high():
    def second_best(tokens, lengths):
        """Greedy's own tokens, but one is AR's second choice."""
        filled = perfect(tokens, lengths)
        history = filled[:, 0, :3]
        logits, _ = toy(history, toy_cache())
        banned = jnp.zeros(VOCAB).at[jnp.asarray([0, 1, 2, 4])].set(-jnp.inf)
        second = jax.lax.top_k(logits[:, 2] + banned, 2)[1][:, 1]
        return jnp.where(tokens[:, :, 3:4] == SPECIALS.mask, filled.at[:, 0, 3].set(second), filled)

    strict, _, _ = speculative(second_best)
    np.testing.assert_array_equal(strict.tokens, greedy().tokens)
    relaxed, _, _ = speculative(second_best, acceptance=Acceptance(top=2, gap=100.0))
    assert not Acceptance(top=2, gap=100.0).lossless
    changed = relaxed.tokens[0, 0] != strict.tokens[0, 0]
    assert changed[2]
    assert not changed[:2].any()
    narrow, _, _ = speculative(second_best, acceptance=Acceptance(top=2, gap=1e-9))
    np.testing.assert_array_equal(narrow.tokens, strict.tokens)


def test_repeats_are_removed_from_drafts_but_not_from_emitted_tokens():
    draft = np.asarray([[[0, 5, 5, 6, 6, 7, 7, 2, 1, 1]]])
    emitted = np.asarray([2])  # 5 5 is emitted and stays
    moved, length = jax.device_get(jax.jit(without_stutter)(draft, np.asarray([[8]]), emitted))
    assert moved[0, 0, : length[0, 0]].tolist() == [0, 5, 5, 6, 7, 2]


@pytest.mark.parametrize(
    ("emitted", "expected"),
    [
        ([5, 9], [0, 5, 9, 7, 8, 2]),  # a substitution: the rest stays where it is
        ([5, 7], [0, 5, 7, 8, 2]),  # the draft had one token too many
        ([5, 6], [0, 5, 6, 7, 8, 2]),  # nothing was wrong
    ],
)
def test_the_rest_of_a_draft_is_aligned_with_the_emitted_tokens(emitted, expected):
    draft = np.asarray([[[0, 5, 6, 7, 8, 2, 1]]])
    tokens = np.asarray([[[0, *emitted, 0, 0, 0, 0]]])
    moved, length = jax.device_get(jax.jit(realign)(draft, np.asarray([[6]]), tokens, np.asarray([len(emitted)])))
    assert moved[0, 0, : length[0, 0]].tolist() == expected


def test_no_repeat_ngram_is_refused():
    with pytest.raises(ValueError, match="no_repeat_ngram"):
        speculative_search(
            None, None, None, None, None, None, max_lengths=np.ones(1), limit=3,
            specials=SPECIALS, constraints=Constraints.default(SPECIALS, 9, no_repeat_ngram=2), costs=CHEAP,
        )  # fmt: skip


def run(mode, request):
    """The result of a mode, with NumPy arrays."""
    return tiny.with_numpy_fields(MODES[mode].run(request))


@pytest.mark.parametrize("ar_start", ["bos", further("eos")])
def test_heads_draft_from_their_start_and_from_the_row_of_the_last_token(ar_start):
    net, params = tiny.model(draft_heads=3, ar_start=ar_start)
    params, rng = tiny.sharper(params, 10), np.random.default_rng(0)
    params["draft_heads"] = jax.tree.map(
        lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), params["draft_heads"]
    )
    source = np.array(tiny.batch(rows=4, seed=3).source)
    decode = with_keywords(DecodeConfig(), {"mode": "speculative", "draft": "always", "min_length": 5})
    result = run("speculative", DecodeRequest(net, params, source, decode, 24, trace=True))
    drafts, emitted = result.trace.drafted, result.trace.emitted
    assert drafts.shape[2] == 3
    banned = forbid(padded_vocab(net.config), (net.specials.pad, net.specials.mask), net.config.vocab_size)
    seen = set()
    for sentence, tokens in enumerate(result.hypotheses.tokens[:, 0]):
        encoded = net.encode(params, source[sentence : sentence + 1])
        frame = [net.specials.eos, net.specials.bos] if ar_start == "eos" else [net.specials.bos]
        fed, done = np.array([[*frame, *tokens]]), 0
        rows = net.ar_rows(params, encoded, fed[:, :-1])[:, len(frame) - 1 :]  # row t predicts tokens[t]
        for number in range(int((emitted[sentence] > 0).sum())):
            row = rows[:, done - 1] if done else net.draft_start(params, 1)
            token = tokens[done - 1] if done else net.specials.bos
            for drafted in drafts[sentence, number]:
                row = net.draft_step(params, encoded, row, np.array([token]))
                token = int(jnp.argmax(net.project(params, row)[0] + banned))
                assert drafted == token, (sentence, number)
                seen.add(token)
            done += int(emitted[sentence, number])
    assert len(seen) > 4, "the drafts must differ"


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        further({}, {}),
        further({"ar_stream": "content"}, {"draft_lengths": 3}),
        further({"ar_start": "eos"}, {"draft_passes": 2, "min_length": 4}),
        further({"draft_heads": 3, "draft_vocab": 16}, {}),
        ({"ctc_ratio": 2.0}, {"min_length": 3}),
        further({"dag_ratio": 3.0, "ar_stream": "content"}, {}),
        further({"draft_heads": 4, "ar_stream": "content", "norm": "pre"}, {"min_length": 2}),
        ({"draft_heads": 3, "ar_start": "eos"}, {"max_length_b": 20}),  # the cache grows
    ],
)
def test_the_model_gives_the_same_output_as_greedy_search(variant, settings):
    net, params = tiny.model(**variant)
    params = tiny.sharper(params, 10)
    if net.config.draft_heads:  # which start at zero
        params["draft_heads"] = jax.tree.map(lambda x: x + np.float32(0.01), params["draft_heads"])
    source = np.array(tiny.batch(rows=8, seed=3).source)
    source[5] = net.specials.pad
    shared = {"max_length_a": 1.0, "max_length_b": 6, "min_length": 1}
    shared |= {name: value for name, value in settings.items() if name in shared}
    one_token_at_a_time = with_keywords(DecodeConfig(), {"beam": 1, **shared})
    greedily = run("ar", DecodeRequest(net, params, source, one_token_at_a_time, 24)).hypotheses
    decode = with_keywords(DecodeConfig(), {"mode": "speculative", "draft": "always", **settings, **shared})
    result = run("speculative", DecodeRequest(dataclasses.replace(net), params, source, decode, 24))
    whole = not (net.config.draft_heads or net.config.ctc_ratio or net.config.dag_ratio)
    counted = "drafts" if whole else "rounds"
    assert int(result.statistics[counted].max()) > 0
    if "max_length_b" in settings:
        assert int(greedily.lengths.max()) > cache_stages(source, result.hypotheses.tokens.shape[2])[0]
    np.testing.assert_array_equal(result.hypotheses.lengths, greedily.lengths)
    np.testing.assert_array_equal(result.hypotheses.tokens, greedily.tokens)
    np.testing.assert_allclose(result.hypotheses.scores[:5], greedily.scores[:5], atol=1e-4)
    # With measured costs the output is the same. In a long pause nothing is drafted, and the pause gets shorter.
    auto = DecodeRequest(net, params, source, with_keywords(decode, {"draft": "auto"}), 24)
    timed = run("speculative", auto)
    np.testing.assert_array_equal(timed.hypotheses.tokens, greedily.tokens)
    before = [costs.before for (binding, *_), costs in drafting._measured.items() if binding.net is net]
    assert before
    if net.config.ctc_ratio or net.config.dag_ratio:  # whose rows take a pass before the first round
        assert min(before) > 0
    elif not net.config.draft_heads:
        assert before == [0.0]
    paused = dataclasses.replace(timed.policy, pause=np.int32(30))
    resting = run("speculative", dataclasses.replace(auto, policy=paused))
    np.testing.assert_array_equal(resting.hypotheses.tokens, greedily.tokens)
    assert int(np.max(resting.statistics[counted])) == 0
    assert resting.policy.pause < 30
    shorter = dataclasses.replace(auto, policy=dataclasses.replace(paused, pause=np.int32(5)))
    tried = run("speculative", shorter)
    np.testing.assert_array_equal(tried.hypotheses.tokens, greedily.tokens)
    assert int(np.max(tried.statistics["passes"])) >= 5


@pytest.mark.parametrize(
    "variant",
    [{"draft_heads": 3, "ar_stream": "content"}, further({"ctc_ratio": 2.0}), further({"dag_ratio": 3.0}), further({})],
    ids=["heads", "ctc", "dag", "nar"],
)
def test_samples_are_those_of_sampling_one_token_at_a_time(variant):
    net, params = tiny.model(**variant)
    params = tiny.sharper(params, 4)
    source = np.array(tiny.batch(rows=8, seed=3).source)
    drawn = {"sample": True, "top_p": 0.95, "temperature": 0.9, "seed": 5, "max_length_b": 8, "min_length": 3}
    lines = np.arange(100, 108, dtype=np.int32)

    def samples(mode, **settings):
        decode = with_keywords(DecodeConfig(), {"mode": mode, **drawn, **settings})
        return run(mode, DecodeRequest(net, params, source, decode, 24, lines=lines))

    single, drafted = samples("ar"), samples("speculative", draft="always")
    np.testing.assert_array_equal(drafted.hypotheses.tokens, single.hypotheses.tokens)
    np.testing.assert_allclose(drafted.hypotheses.token_scores, single.hypotheses.token_scores, atol=1e-4)
    others = samples("ar", seed=6)  # greedy search would not depend on the seed
    assert (others.hypotheses.tokens[:, 0, :3] != single.hypotheses.tokens[:, 0, :3]).any()
    assert int(drafted.statistics["rounds"].sum()) > 0


def test_drafts_do_not_change_the_distribution_of_samples():
    """20,000 samples of two tokens against the exact probabilities, by Pearson's chi-square."""
    count, vocab, allowed = 20_000, 9, [3, 5, 6, 7, 8]  # all but pad, bos, mask, and eos, which is forced behind
    table = np.random.default_rng(0).normal(size=(vocab, vocab)).astype(np.float32)
    table[:, SPECIALS.eos] = -np.inf
    odds = np.exp(table[:, allowed].astype(np.float64))
    probabilities = odds / odds.sum(-1, keepdims=True)
    likely = allowed[int(probabilities[SPECIALS.bos].argmax())]

    def verify(tokens, cache):
        return jnp.asarray(table)[tokens], cache + tokens.shape[1]

    def draft(tokens, lengths):
        return jnp.where(tokens == SPECIALS.mask, likely, tokens)  # a draft that is right now and then

    @jax.jit
    def search():
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(count))
        return speculative_search(
            WholeDrafts(draft, jnp.full((count, 1), 5), 5, SPECIALS),
            verify,
            lambda rows: rows,
            lambda cache, length: length,
            lambda cache, rows: cache,
            jnp.zeros(count, jnp.int32),
            max_lengths=jnp.full(count, 3),
            limit=3,
            specials=SPECIALS,
            constraints=Constraints.default(SPECIALS, vocab),
            costs=PassCosts.of_free_drafts((3,)),
            pick_fn=sampler(keys),
        )

    result, did, _ = jax.device_get(search())
    assert 0.05 < did.drafted.sum() / (3 * count) < 0.95
    observed = np.zeros((vocab, vocab))
    np.add.at(observed, tuple(result.tokens[:, 0, :2].T), 1)
    first = dict(zip(allowed, probabilities[SPECIALS.bos], strict=True))
    expected = np.array([[first[a] * probabilities[a][j] for j in range(len(allowed))] for a in allowed]) * count
    assert observed.sum() == observed[np.ix_(allowed, allowed)].sum() == count
    assert expected.min() > 5
    assert stats.chisquare(observed[np.ix_(allowed, allowed)].ravel(), expected.ravel()).pvalue > 0.01
    # The test would see a rule that accepts every draft now and then.
    spoilt = 0.96 * expected
    spoilt[allowed.index(likely)] += 0.04 * count * probabilities[likely]
    assert stats.chisquare(observed[np.ix_(allowed, allowed)].ravel(), spoilt.ravel()).pvalue < 0.01
