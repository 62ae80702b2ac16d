"""Mask-predict: schedules, rules and the choice between candidates."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.config import DecodeConfig, NarDecode
from janus_jax.decode import MODES, DecodeRequest
from janus_jax.decode.batching import sentence_results
from janus_jax.decode.search.candidates import (
    MaskPredictRules,
    candidate_lengths,
    hypotheses_of,
    ranking,
    with_length_scores,
)
from janus_jax.decode.search.mask_predict import mask_predict, remask_counts
from janus_jax.types import Specials
from tests import tiny
from tests.golden_check import Golden

SPECIALS = Specials()
RELEASED = MaskPredictRules.RELEASED
ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def _table_model(table):
    """Logits [N, M, V] that depend on the slot alone."""
    return lambda tokens, slots: jnp.asarray(table, jnp.float32)[slots]


def _fill(model, lengths, **settings):
    """The candidates of mask-predict as NumPy arrays, by one compiled program."""
    candidates = jax.jit(lambda n: mask_predict(model, n, specials=SPECIALS, **settings))(jnp.asarray(lengths))
    jax.effects_barrier()
    return jax.device_get(candidates)


def _watched(model, seen):
    """The same model, which appends to `seen` what each pass shows it: tokens and the number of slots."""

    def watching(tokens, slots):
        jax.debug.callback(lambda t: seen.append((np.asarray(t), slots.shape[1])), tokens, ordered=True)
        return model(tokens, slots)

    return watching


def _counting(tokens, slots):
    """A model whose prediction tells how many masks it saw, surer at higher positions."""
    masks = jnp.sum(tokens == SPECIALS.mask, axis=-1)
    return jax.nn.one_hot(5 + jnp.broadcast_to(masks[:, None], slots.shape), 20) * (4.0 + slots[..., None])


def _chosen(candidates, rules=MaskPredictRules.DEFAULT):
    """The index of each sentence's best candidate, result by its score."""
    return ranking(candidates, rules)[:, 0].tolist()


def test_remask_counts_equal_the_released_ones():
    path = SHARED / "golden" / "remask_counts.npz"
    if not path.exists():
        pytest.skip("golden arrays are not beside this checkout")
    with np.load(path) as golden:
        for name in golden.files:
            expected = golden[name]
            passes = int(name.rsplit("_", 1)[1])
            ours = [remask_counts(length + 2, passes) for length in range(len(expected))]
            np.testing.assert_array_equal(ours, expected, err_msg=name)


def test_top_lengths_are_distinct_and_within_the_limits():
    logits = jnp.asarray([[9.0, 8.0, 1.0, 3.0, 2.0, 7.0]])
    assert candidate_lengths(logits, 3, limit=4, rules=MaskPredictRules()).tolist() == [[3, 4, 2]]
    with pytest.raises(ValueError, match="only 3"):
        candidate_lengths(logits, 4, limit=4, rules=MaskPredictRules())


@pytest.mark.parametrize(
    ("best", "k", "expected"), [(7, 3, [6, 7, 8]), (2, 3, [2, 2, 3]), (7, 4, [5, 6, 7, 8]), (0, 1, [2])]
)
def test_released_lengths_are_contiguous_and_keep_duplicates(best, k, expected):
    logits = jax.nn.one_hot(jnp.asarray([best]), 20)
    assert candidate_lengths(logits, k, limit=19, rules=RELEASED).tolist() == [expected]


def test_the_least_probable_slots_are_masked_again_and_ties_go_to_lower_positions():
    # Slots 1..4: token 5 with falling, then equal certainty. Two of four slots are masked again after pass 1 of 2.
    table = np.zeros((6, 8))
    table[1:5, 5] = [3.0, 1.0, 1.0, 1.0]
    out = _fill(_table_model(table), [[6]], passes=2, limit=6, vocab_size=8, trace=True)
    assert out.trace.remasked[0, 0, 0].tolist() == [False, False, True, True, False, False]
    assert not out.trace.remasked[1].any()
    assert out.tokens[0, 0].tolist() == [0, 5, 5, 5, 5, 2]
    log_probs = log_softmax(table, axis=-1)
    np.testing.assert_allclose(out.token_scores[0, 0, 1:5], log_probs[1:5, 5], rtol=1e-6)
    np.testing.assert_allclose(out.scores[0, 0], log_probs[1:5, 5].mean(), rtol=1e-6)


def test_masked_slots_alone_change_and_the_model_sees_the_masks():
    seen = []
    out = _fill(_watched(_counting, seen), [[6]], passes=4, limit=7, vocab_size=20)
    assert [int((t == SPECIALS.mask).sum()) for t, _ in seen] == [4, 3, 2, 1]
    # Certainty rises with the position, so that slots are settled from the right.
    assert out.tokens[0, 0].tolist() == [0, 6, 7, 8, 9, 2, 1]


def test_revising_passes_predict_all_slots_that_were_masked_at_first():
    seen = []
    start = jnp.asarray([[[0, 4, 17, 4, 4, 2, 1]]])  # one token is given
    arguments = {"passes": 3, "limit": 7, "vocab_size": 20, "revise": True, "start": start}
    out = _fill(_watched(_counting, seen), [[6]], **arguments)
    assert [int((t == SPECIALS.mask).sum()) for t, _ in seen] == [3, 2, 1]
    # Each pass reads what the pass before predicted anew, and the given token.
    assert [t[0].tolist() for t, _ in seen] == [[0, 4, 17, 4, 4, 2, 1], [0, 4, 17, 4, 8, 2, 1], [0, 4, 17, 7, 7, 2, 1]]
    assert {width for _, width in seen} == {5}
    assert out.tokens[0, 0].tolist() == [0, 6, 17, 6, 6, 2, 1]


def test_specials_are_never_emitted_unless_released():
    table = np.zeros((4, 8))
    table[:, [0, 1, 4]] = 9.0
    table[:, 4] = 10.0
    table[:, 6] = 1.0

    def run(rules):
        return _fill(_table_model(table), [[4]], passes=3, limit=4, vocab_size=8, rules=rules)

    assert run(MaskPredictRules()).tokens[0, 0].tolist() == [0, 6, 6, 2]
    assert run(RELEASED).tokens[0, 0].tolist() == [0, 4, 4, 2]


def test_columns_past_the_vocabulary_are_never_emitted():
    table = np.zeros((4, 8))
    table[:, 6:] = 5.0
    table[:, 5] = 1.0
    out = _fill(_table_model(table), [[4]], passes=1, limit=4, vocab_size=6)
    assert out.tokens[0, 0].tolist() == [0, 5, 5, 2]


def test_an_inner_eos_ends_the_sentence():
    table = np.zeros((6, 8))
    table[1, 5] = table[2, 2] = table[3, 6] = table[4, 7] = 4.0
    arguments = {"passes": 1, "limit": 6, "vocab_size": 8}
    ours = _fill(_table_model(table), [[6]], **arguments)
    assert ours.tokens[0, 0].tolist() == [0, 5, 2, 1, 1, 1]
    assert ours.lengths.tolist() == [[3]]
    released = _fill(_table_model(table), [[6]], rules=RELEASED, **arguments)
    assert released.tokens[0, 0].tolist() == [0, 5, 2, 6, 7, 2]
    # Released: the mean runs over bos and eos too, at 0.
    np.testing.assert_allclose(released.scores[0, 0] * 6, ours.scores[0, 0] * 4, rtol=1e-5)


def test_an_empty_candidate_wins_only_alone():
    table = np.zeros((4, 8))
    table[:, 5] = 1.0
    arguments = {"passes": 1, "limit": 4, "vocab_size": 8}
    both = _fill(_table_model(table), [[2, 4]], **arguments)
    assert _chosen(both) == [1]
    assert _chosen(both, RELEASED) == [0]
    alone = _fill(_table_model(table), [[2]], **arguments)
    result = hypotheses_of(alone, ranking(alone))
    assert result.tokens[0, 0].tolist() == [2, 1, 1]
    assert result.lengths.tolist() == [[1]]


def test_projecting_in_chunks_changes_nothing():
    rng = np.random.default_rng(0)
    table, weights = rng.normal(size=(9, 5)), jnp.asarray(rng.normal(size=(5, 12)), jnp.float32)
    lengths = [[9, 4, 7], [5, 6, 8]]

    def hidden(tokens, slots):
        return _table_model(table)(tokens, slots) + jnp.take_along_axis(tokens, slots, axis=1)[..., None] * 0.1

    arguments = {"passes": 4, "limit": 9, "vocab_size": 12}
    whole = _fill(lambda t, at: hidden(t, at) @ weights, lengths, **arguments)
    parts = _fill(hidden, lengths, project_fn=lambda rows: rows @ weights, chunk=7, **arguments)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-5)


def test_the_probability_of_the_length_counts_in_the_choice():
    # Slots 1 and 2 are sure; slot 3, which only the longer candidate has, is a little less so.
    table = np.full((5, 8), -9.0)
    table[1, 5] = table[2, 6] = 9.0
    table[3, 7], table[3, 5] = 1.0, -1.0
    lengths = np.array([[4, 5]])
    result = _fill(_table_model(table), lengths, passes=1, limit=5, vocab_size=8)
    assert _chosen(result) == [0], "by its tokens alone the shorter candidate wins"
    logits = np.log([[0.01, 0.01, 0.01, 0.01, 0.06, 0.9]])
    weighted = jax.jit(with_length_scores)(result, logits, lengths)
    np.testing.assert_allclose(weighted.scores - result.scores, [[np.log(0.06) / 2, np.log(0.9) / 3]], rtol=1e-4)
    assert _chosen(weighted) == [1]


def test_the_cosine_schedule_keeps_more_masks_at_first_and_none_at_last():
    linear, cosine = remask_counts(22, 10), remask_counts(22, 10, "cosine")
    assert linear == [18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
    assert cosine == [19, 19, 17, 16, 14, 11, 9, 6, 3, 0]
    assert remask_counts(22, 1, "cosine") == [0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("passes", [1, 3, 7])
def test_only_slots_that_can_be_masked_are_predicted_and_all_of_them(schedule, passes):
    """The model is asked for few slots; each mask is nevertheless filled in the pass that sees it."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(12, 16))
    seen = []
    settings = {"passes": passes, "limit": 12, "vocab_size": 16, "schedule": schedule, "trace": True}
    out = _fill(_watched(_table_model(table), seen), [[12], [5], [2]], **settings)
    widths = [width for _, width in seen]
    assert not (out.trace.tokens[:, :, 0] == SPECIALS.mask).any()
    counts = out.trace.remasked.sum(axis=-1)[:, :, 0]
    expected = np.asarray([remask_counts(n, passes, schedule) for n in (12, 5, 2)]).T
    np.testing.assert_array_equal(counts, expected)
    masked = [10, *expected.max(axis=1)[:-1].tolist()]  # before each pass, in the longest
    assert len(widths) == passes
    assert all(count <= width <= max(2 * count - 1, 1) for count, width in zip(masked[1:], widths[1:], strict=True))
    assert widths[0] == 10


def test_fixed_tokens_stay_and_only_gaps_are_scored():
    table = np.zeros((7, 10))
    table[:, 5] = np.arange(7)
    start = jnp.asarray([[[0, 8, 4, 9, 4, 2, 1]], [[0, 4, 4, 4, 7, 8, 2]]])
    out = _fill(_table_model(table), [[6], [7]], passes=3, limit=7, vocab_size=10, start=start)
    assert out.tokens[:, 0].tolist() == [[0, 8, 5, 9, 5, 2, 1], [0, 5, 5, 5, 7, 8, 2]]
    log_probs = log_softmax(table, axis=-1)[:, 5]
    np.testing.assert_allclose(out.scores[:, 0], [log_probs[[2, 4]].mean(), log_probs[1:4].mean()], rtol=1e-5)


def test_early_stop_keeps_a_complete_output_that_no_longer_changes():
    """A sentence settles after two equal passes; one that depends on its input keeps changing."""

    def model(tokens, slots):
        masks = jnp.sum(tokens == SPECIALS.mask, axis=-1)
        restless = 5 + jnp.where(jnp.arange(tokens.shape[0]) == 0, 0, masks % 3)
        return jax.nn.one_hot(jnp.broadcast_to(restless[:, None], slots.shape), 20) * (4.0 + slots[..., None])

    arguments = {"passes": 6, "limit": 9, "vocab_size": 20}
    lengths = [[9], [9]]
    full = _fill(model, lengths, **arguments)
    early = _fill(model, lengths, early_stop=True, trace=True, **arguments)
    assert early.passes[:, 0].tolist()[0] == 2
    assert early.passes[1, 0] > 2
    # The trace of a sentence ends with the pass that made it final.
    recorded = (early.trace.tokens != 0).any(axis=-1)[:, :, 0].sum(axis=0)
    np.testing.assert_array_equal(recorded, early.passes[:, 0])
    assert full.passes[:, 0].tolist() == [6, 6]
    assert not (early.tokens == SPECIALS.mask).any()
    np.testing.assert_array_equal(early.tokens[0], full.tokens[0])
    np.testing.assert_allclose(early.scores[0], full.scores[0], rtol=1e-6)


def test_released_rules_strip_emitted_pads_from_the_finished_candidate():
    table = np.zeros((6, 8))
    table[1, 5], table[2, 1], table[3, 6], table[4, 1] = 4.0, 3.0, 2.0, 1.0
    out = _fill(_table_model(table), [[6]], passes=1, limit=7, vocab_size=8, rules=RELEASED)
    assert (out.tokens[0, 0].tolist(), out.lengths.tolist()) == ([0, 5, 6, 2, 1, 1, 1], [[4]])
    log_probs = log_softmax(table, axis=-1)
    expected = [0, log_probs[1, 5], log_probs[3, 6], 0, 0, 0, 0]
    np.testing.assert_allclose(out.token_scores[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(out.scores[0, 0], sum(expected) / 4, rtol=1e-5)


def _released_reference(log_probs, length_logits, passes, length_beam):
    """One sentence by the released rules (docs/method.md, section 7), in plain NumPy: tokens, their scores and the mean."""
    bos, pad, eos, mask = SPECIALS.bos, SPECIALS.pad, SPECIALS.eos, SPECIALS.unk
    finished = []
    for i in range(length_beam):
        length = max(max(int(np.argmax(length_logits)), 2) - length_beam // 2 + i, 2)
        tokens = np.array([bos] + [mask] * (length - 2) + [eos])
        scores = np.zeros(length)
        for s in range(1, passes + 1):
            real = tokens != pad
            seen = log_probs(tokens[real])  # the position of a token counts the real tokens before it
            masked = tokens == mask
            tokens[masked], scores[masked] = seen[masked[real]].argmax(-1), seen[masked[real]].max(-1)
            if s < passes:
                again = np.argsort(scores, kind="stable")[: ((tokens != pad).sum() - 2) * (passes - s) // passes]
                tokens[again], scores[again] = mask, 0.0
        real = tokens != pad
        finished.append((tokens[real], scores[real], scores[real].mean(), (~real).sum()))
    return max(finished, key=lambda candidate: candidate[2])  # the first one of equals


@pytest.fixture(scope="module")
def model_that_emits_pads():
    """A model of random weights, where pad is a little likelier than a frequent token; its parameters, sources and encodings."""
    with np.load(ROOT / "tests" / "golden" / "golden_mt_1.npz") as arrays:
        golden = Golden(dict(arrays))
    params = jax.tree.map(jnp.array, golden.params)
    table = params["embed_tokens"]["embedding"]
    params["embed_tokens"]["embedding"] = table.at[SPECIALS.pad].set(1.1 * table[4])
    source = golden["in/src_tokens"].astype(np.int32)
    return golden.net, params, source, jax.device_get(jax.jit(golden.net.encode)(params, source))


@pytest.mark.parametrize(("passes", "length_beam"), [(1, 3), (5, 3)])
def test_a_model_that_emits_pads_decodes_by_the_released_rules(passes, length_beam, model_that_emits_pads):
    net, params, source, encoded = model_that_emits_pads
    widest, vocab = 80, net.config.vocab_size
    run = jax.jit(
        lambda encoded, tokens: jax.nn.log_softmax(
            net.project(params, net.nar_rows(params, encoded, tokens))[0, :, :vocab]
        )
    )
    settings = DecodeConfig(mode="nar", rules="released", nar=NarDecode(passes=passes, length_beam=length_beam))
    result = MODES["nar"].run(DecodeRequest(net, params, source, settings, 256, trace=True))
    result = tiny.with_numpy_fields(result)
    ours, stripped = result.hypotheses, 0
    for b in range(len(source)):
        sentence = jax.tree.map(lambda x, b=b: x[b : b + 1], encoded)

        def log_probs(tokens, sentence=sentence):
            padded = np.pad(tokens, (0, widest - len(tokens)), constant_values=SPECIALS.pad)[None]
            return np.asarray(run(sentence, padded))[: len(tokens)]

        tokens, scores, mean, pads = _released_reference(log_probs, sentence.length_logits[0], passes, length_beam)
        length = int(ours.lengths[b, 0])
        assert ours.tokens[b, 0, :length].tolist() == tokens[1:].tolist()
        assert (ours.tokens[b, 0, length:] == SPECIALS.pad).all()
        np.testing.assert_allclose(ours.token_scores[b, 0, :length], scores[1:], atol=2e-5)
        np.testing.assert_allclose(ours.scores[b, 0], mean, atol=2e-5)
        stripped += pads
    assert stripped > len(source)
    # The trace keeps the slots of the pads, up to the last eos.
    last = result.trace.tokens[-1]
    for sentence, slots in zip(sentence_results(result, len(source), SPECIALS), last, strict=True):
        traced = sentence.trace[-1]["tokens"]
        assert len(traced) == np.flatnonzero(slots != SPECIALS.pad)[-1] - 1
        assert [token for token in traced if token != SPECIALS.pad] == sentence.ranked[0][0]
