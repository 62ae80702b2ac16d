"""Every mode on a tiny model that has learned something: a task with one right output, which each of them has to find."""

import jax
import numpy as np
import pytest

from janus_jax.config import ArDecode, ConfigError, CtcDecode, DecodeConfig, NarDecode, resolve
from janus_jax.data import corruption
from janus_jax.decode import Generator
from janus_jax.model import Janus
from janus_jax.train.step import init_state, make_train_step
from janus_jax.types import Batch, Specials
from tests import tiny
from tests.further import further

VOCAB, LONGEST, STEPS, ROWS = 24, 9, 300, 96
SPECIALS = Specials()


def pairs(count, seed, distinct=False):
    """Sources of 2 to 7 tokens, and their targets: the next token of each, and the first one once more at the end.

    With `distinct` no source has a token twice: CTC learns late to put a blank between equal neighbours.
    """
    rng = np.random.default_rng(seed)

    def source(length):
        return (rng.permutation(np.arange(5, VOCAB))[:length] if distinct else rng.integers(5, VOCAB, length)).tolist()

    sources = [source(rng.integers(2, LONGEST - 2)) for _ in range(count)]
    return sources, [[5 + (token - 4) % (VOCAB - 5) for token in [*source, source[0]]] for source in sources]


@pytest.fixture(scope="module")
def generator():
    return trained({})


@pytest.fixture(scope="module")
def ctc_generator():
    return trained({"name": "janus_ctc"}, ctc_ratio=2.0, ctc_input="source", decoder_layers=2)


@pytest.fixture(scope="module")
def dag_generator():
    return trained({"name": "janus_dag"}, dag_ratio=2.0)


def trained(objective, **model):
    """A generator of a model that was trained on the task."""
    config = resolve(
        {
            "data": {"mask_suffix": 0.3, "max_source_length": LONGEST + 1, "max_target_length": LONGEST + 1},
            "model": {
                "vocab_size": VOCAB, "d_model": 32, "ffn_dim": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 1,
                "max_positions": 32, "length_classes": 16, "vocab_multiple": 8, "dropout": 0.0, "dtype": "float32", **model,
            },
            "optimizer": {"learning_rate": 6e-3, "warmup_steps": 40, "schedule": "cosine", "clip_norm": 1.0},
            "objective": {"label_smoothing": 0.0, **objective},
            "train": {"steps": STEPS},
        }
    )  # fmt: skip
    net = Janus(config.model, SPECIALS)
    sampler = corruption.make_sampler(config.data)
    state = jax.jit(lambda: init_state(net, config))()
    first = batch_of(*pairs(ROWS, 0), sampler, 0)
    # Many steps: here some of the compiler's time is well spent.
    step = jax.jit(make_train_step(net, config), donate_argnums=0)
    step = step.lower(state, first).compile(compiler_options={"xla_backend_optimization_level": 1})
    for number in range(STEPS):
        batch = batch_of(*pairs(ROWS, 1000 + number, distinct=net.config.ctc_ratio > 0), sampler, number)
        state, metrics = step(state, batch)
    assert float(metrics["nll/ar"]) < 0.2
    decode = DecodeConfig(
        ar=ArDecode(beam=3, max_length_a=1.0, max_length_b=5),
        nar=NarDecode(passes=3, length_beam=2),
        ctc=CtcDecode(beam=3),
    )
    return Generator(net, state.params, None, decode, max_source_length=LONGEST, max_target_length=LONGEST + 1)


def batch_of(sources, targets, sampler, epoch):
    """A batch [1, B, ...] with its masks."""
    arrays = {}
    for name, rows in (("source", sources), ("target", targets)):
        arrays[name] = np.full((len(rows), LONGEST + 1), SPECIALS.pad, np.int32)
        for row, ids in enumerate(rows):
            arrays[name][row, : len(ids) + 2] = [SPECIALS.bos, *ids, SPECIALS.eos]
    lengths = np.asarray([len(ids) + 2 for ids in targets])
    ids = np.arange(len(lengths))
    uniforms = corruption.row_uniforms(0, epoch, ids, lengths, sampler.uniforms)
    masked, count = corruption.mask_positions(sampler.masks(uniforms, lengths), sampler.max_masked(LONGEST + 1))
    batch = Batch(arrays["source"], arrays["target"], masked, count, ids.astype(np.int32))
    return jax.tree.map(lambda x: x[None], batch)


SETTINGS = [
    {"mode": "ar", "beam": 1},
    {"mode": "ar", "beam": 3},
    {"mode": "ar", "sample": True, "temperature": 0.1},
    {"mode": "nar", "passes": 1, "length_beam": 1},
    {"mode": "nar", "passes": 3, "length_beam": 2},
    {"mode": "nar", "passes": 3, "length_beam": 2, "rerank": "ar"},
    {"mode": "nar", "passes": 3, "mask_schedule": "cosine", "early_stop": True},
    {"mode": "speculative", "draft": "always"},
    {"mode": "speculative", "draft": "always", "draft_lengths": 2, "accept_top": 2, "accept_gap": 0.1},
]


def right(outputs, targets):
    return np.mean([output.tokens == target for output, target in zip(outputs, targets, strict=True)])


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()))
def test_every_mode_finds_the_right_output(generator, settings):
    sources, targets = pairs(200, 0)
    outputs = generator.generate_ids(sources, **settings)
    assert right(outputs, targets) > 0.9
    assert not any(set(output.tokens) & {SPECIALS.bos, SPECIALS.pad, SPECIALS.mask} for output in outputs)
    if settings["mode"] == "nar" and "early_stop" not in settings:
        passes = settings["passes"] + ("rerank" in settings)
        assert {output.statistics["passes"] for output in outputs} == {passes}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "ctc", "beam": 1},
        {"mode": "ctc", "beam": 3},
        {"mode": "ctc", "beam": 3, "rerank": "ar", "lenpen": 1.0},
        {"mode": "ar", "beam": 1},
        {"mode": "speculative", "draft": "always"},
    ],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()),
)
def test_ctc_and_ar_of_one_model_find_the_right_output(ctc_generator, settings):
    sources, targets = pairs(200, 0, distinct=True)
    outputs = ctc_generator.generate_ids(sources, **settings)
    assert right(outputs, targets) > 0.9
    if settings["mode"] == "ctc":
        assert {output.statistics["passes"] for output in outputs} == {1 + ("rerank" in settings)}


@pytest.mark.slow
def test_a_wider_ctc_beam_finds_likelier_outputs(ctc_generator):
    sources, _ = pairs(100, 3)
    narrow, wide = (ctc_generator.generate_ids(sources, mode="ctc", beam=beam, nbest=2) for beam in (2, 6))
    assert all(a.score <= b.score + 1e-5 for a, b in zip(narrow, wide, strict=True))
    for output in wide:
        assert output.others[0].tokens != output.tokens
        assert output.score >= output.others[0].score


@pytest.mark.slow
@pytest.mark.parametrize("beam", [1, 3])
def test_a_penalty_of_the_blank_makes_outputs_longer(ctc_generator, beam):
    sources, _ = pairs(50, 4, distinct=True)
    lengths = [
        sum(
            len(output.tokens) for output in ctc_generator.generate_ids(sources, mode="ctc", beam=beam, blank_penalty=x)
        )
        for x in (0.0, 50.0)
    ]
    # Rows are two a source token, its frame included.
    assert lengths[0] < lengths[1] <= sum(2 * (len(source) + 2) for source in sources)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "dag", "search": "greedy"},
        {"mode": "dag", "search": "lookahead"},
        {"mode": "dag", "search": "viterbi"},
        {"mode": "dag", "search": "beam", "beam": 3},
        {"mode": "dag", "search": "beam", "beam": 3, "rerank": "ar", "lenpen": 1.0},
        {"mode": "ar", "beam": 1},
    ],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()),
)
def test_dag_and_ar_of_one_model_find_the_right_output(dag_generator, settings):
    # Some sources have a token twice in a row, and so have their targets.
    sources, targets = pairs(200, 0)
    outputs = dag_generator.generate_ids(sources, **settings)
    assert right(outputs, targets) > 0.9
    if settings["mode"] == "dag":
        assert {output.statistics["passes"] for output in outputs} == {1 + ("rerank" in settings)}


@pytest.mark.slow
def test_searches_of_a_graph_agree_where_they_should(dag_generator):
    sources, _ = pairs(100, 3)

    def scores(**settings):
        return np.array([output.score for output in dag_generator.generate_ids(sources, mode="dag", **settings)])

    best = scores(search="viterbi")
    assert (scores(search="greedy") <= best + 1e-5).all()
    assert (scores(search="lookahead") <= best + 1e-5).all()
    # An output has at least the probability of its best path.
    assert (scores(search="beam", beam=6) >= best - 1e-5).all()
    outputs = dag_generator.generate_ids(sources, mode="dag", search="beam", beam=6, nbest=2)
    for output in outputs:
        assert output.others[0].tokens != output.tokens
        assert output.score >= output.others[0].score


def test_impossible_dag_decoding_raises(generator):
    with pytest.raises(ConfigError, match=r"no DAG rows.*janus_dag"):
        generator.generate_ids([[5, 6]], mode="dag")
    cramped = Generator(*tiny.model(dag_ratio=2.0, max_positions=32), None, max_source_length=17)
    with pytest.raises(ConfigError, match=r"32 positions do not hold the 34 DAG rows of a source of 17"):
        cramped.generate_ids([[5, 6], [7] * 15], mode="dag")


def test_impossible_ctc_decoding_raises(generator):
    with pytest.raises(ConfigError, match=r"no CTC rows.*janus_ctc"):
        generator.generate_ids([[5, 6]], mode="ctc")
    cramped = Generator(*tiny.model(ctc_ratio=2.0, max_positions=32), None, max_source_length=17)
    with pytest.raises(
        ConfigError, match=r"32 positions do not hold the 34 CTC rows of a source of 17.*lower max_source_length"
    ):
        cramped.generate_ids([[5, 6], [7] * 15], mode="ctc")
    with pytest.raises(ConfigError, match=r"draft_lengths: 2.*set it to 1"):
        cramped.generate_ids([[5, 6]], mode="speculative", draft="always", draft_lengths=2)


@pytest.mark.parametrize("half", ["generator", further("ctc_generator")])
def test_good_drafts_take_few_passes(half, request):
    generator = request.getfixturevalue(half)
    sources, targets = pairs(100, 1, distinct=half == "ctc_generator")
    greedy = generator.generate_ids(sources, mode="ar", beam=1)
    outputs = generator.generate_ids(sources, mode="speculative", draft="always")
    assert [output.tokens for output in outputs] == [output.tokens for output in greedy]
    passes = np.mean([output.statistics["passes"] for output in outputs])
    assert passes < 0.6 * np.mean([len(target) + 1 for target in targets])


def test_gaps_are_filled_with_the_original_tokens(generator):
    sources, targets = pairs(200, 2)
    rng = np.random.default_rng(0)
    gapped = [[SPECIALS.mask if rng.random() < 0.5 else token for token in target] for target in targets]
    for settings in ({"mode": "infill", "draft": "always"}, {"mode": "nar", "passes": 2}):
        outputs = generator.generate_ids(sources, targets=gapped, **settings)
        assert right(outputs, targets) > 0.9
        for output, target in zip(outputs, gapped, strict=True):
            assert [b for a, b in zip(target, output.tokens, strict=True) if a != SPECIALS.mask] == [
                a for a in target if a != SPECIALS.mask
            ]


def test_a_prefix_is_continued(generator):
    sources, targets = pairs(100, 3)
    outputs = generator.generate_ids(sources, prefixes=[target[:2] for target in targets], mode="ar", beam=2)
    assert right(outputs, targets) > 0.9
