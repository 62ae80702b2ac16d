"""The PyTorch model of hf exports computes the logits and the tokens of the JAX model."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.config import ArDecode, DecodeConfig, resolve
from janus_jax.convert import params_from_released, params_to_released
from janus_jax.convert.fairseq import SHARED
from janus_jax.data import corruption
from janus_jax.decode import Generator
from janus_jax.decode.keywords import with_keywords
from janus_jax.model import Janus
from janus_jax.model.presets import PRESETS
from janus_jax.train.step import init_state, make_train_step
from janus_jax.types import Batch, Specials
from tests import tiny
from tests.convert import foreign
from tests.convert.parallel_models import lively
from tests.further import further

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.numpy import save_file  # noqa: E402

from janus_jax.convert import hf  # noqa: E402
from janus_jax.convert.hf.configuration_janus import EARLY_STOPPING, default_generation_config  # noqa: E402
from janus_jax.convert.hf.modeling_janus import EndInTime, JanusForConditionalGeneration  # noqa: E402

BART = {"activation": "gelu", "scale_embedding": False, "layernorm_embedding": True, "ar_start": "eos"}
ARCHITECTURES = {
    "post-norm, relu, query stream": {},
    "bart": BART,
    "bart, content stream, nar rows not normalised": {
        **BART, "ar_stream": "content", "nar_layernorm_embedding": False,
    },
    "pre-norm, fewer encoder layers": {"norm": "pre", "encoder_layers": 1},
    "content stream": {"ar_stream": "content"},
    "slots at their inputs, mask is unk": {"ar_slot_position": "input", "mask_token": "unk"},
}  # fmt: skip
FURTHER = ("post-norm, relu, query stream", "content stream", "pre-norm, fewer encoder layers")
SPECIALS = Specials()
VOCAB, LONGEST = 12, 12  # of the toy task


pytestmark = pytest.mark.usefixtures("transformers")


def export(net, params, directory, **changes):
    """Writes a directory that `from_pretrained` reads: weights under released names, the embedding once."""
    directory.mkdir()
    for name in ("configuration_janus.py", "modeling_janus.py"):
        shutil.copy(Path(hf.__file__).parent / name, directory)
    settings = dataclasses.asdict(net.config)
    fields = {name: settings[name] for name in settings if name not in ("dtype", "remat", "attention")}
    fields |= {f"{name}_token_id": value for name, value in dataclasses.asdict(net.specials).items()}
    config = {
        **{name: value for name, value in fields.items() if name not in ("mask_token", "vocab_multiple")},
        "model_type": "janus_jax",
        "architectures": ["JanusForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_janus.JanusConfig",
            "AutoModelForSeq2SeqLM": "modeling_janus.JanusForConditionalGeneration",
        },
        "janus_jax": {"model": settings},
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arrays = {name: np.ascontiguousarray(value) for name, value in params_to_released(params, net.config).items()}
    save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def load(directory):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True).eval()


@pytest.fixture(
    scope="module",
    params=[further(model) if name in FURTHER else model for name, model in ARCHITECTURES.items()],
    ids=ARCHITECTURES.keys(),
)
def pair(request, tmp_path_factory):
    """A random model in JAX and in PyTorch: (net, params, model)."""
    net = tiny.net(**request.param)
    params = params_from_released(foreign.arrays_of(net), net.config)
    return net, params, load(export(net, params, tmp_path_factory.mktemp("export") / "model"))


@pytest.fixture(scope="module")
def batch():
    """Sources and targets of different lengths, and which target tokens are masked."""
    sentences = tiny.batch(rows=5, source=9, target=8)
    rng = np.random.default_rng(1)
    source, target = np.asarray(sentences.source), np.asarray(sentences.target)
    return source, target, (rng.random(target.shape) < 0.5) & (target >= 5)


def ids(array):
    return torch.from_numpy(np.array(array, np.int64))


def decoder_inputs(net, target):
    """What the decoder reads in teacher forcing, with eos for padding: no real row attends to it."""
    fed = target if net.config.ar_start == "bos" else np.pad(target, ((0, 0), (1, 0)), constant_values=SPECIALS.eos)
    return np.where(fed == SPECIALS.pad, SPECIALS.eos, fed)[:, :-1]


@pytest.fixture(scope="module")
def expected(pair, batch):
    """AR logits, NAR logits and length logits of the JAX model."""
    net, params, _ = pair
    source, target, masked = batch

    @jax.jit
    def compute(params, source, fed, tokens):
        encoded = net.encode(params, source)
        ar, nar = net.ar_rows(params, encoded, fed), net.nar_rows(params, encoded, tokens)
        return net.project(params, ar), net.project(params, nar), encoded.length_logits

    tokens = np.where(masked, net.specials.mask, target)
    ar, nar, lengths = jax.device_get(compute(params, source, decoder_inputs(net, target), tokens))
    return ar[..., : tiny.VOCAB], nar[..., : tiny.VOCAB], lengths


def assert_equal(actual, expected, real=None):
    difference = np.abs(actual.detach().numpy() - expected)
    assert (difference if real is None else difference[real]).max() < 1e-4
    assert expected.std() > 0.2, "logits are so flat that any would pass"


def test_teacher_forcing(pair, batch, expected):
    net, _, model = pair
    source, target, _ = batch
    fed = ids(decoder_inputs(net, target))
    output = model(input_ids=ids(source), decoder_input_ids=fed)
    assert_equal(output.logits, expected[0])
    as_tuple = model(input_ids=ids(source), decoder_input_ids=fed, use_cache=False, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits)
    assert output.past_key_values.get_seq_length() == fed.shape[1]  # content rows only


def test_steps_through_the_cache(pair, batch, expected):
    net, _, model = pair
    source, target, _ = batch
    fed = ids(decoder_inputs(net, target))
    real = ids(source != SPECIALS.pad)
    encoded = model.encoder(ids(source), real)
    cache, parts = None, []
    for first, last in [(0, 2), *((t, t + 1) for t in range(2, fed.shape[1]))]:
        output = model(
            attention_mask=real,
            encoder_outputs=encoded,
            decoder_input_ids=fed[:, first:last],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        parts.append(output.logits)
    assert_equal(torch.cat(parts, dim=1), expected[0])


def test_masks_and_lengths(pair, batch, expected):
    net, _, model = pair
    source, target, masked = batch
    tokens = ids(np.where(masked, net.specials.mask, target))
    assert_equal(model.nar_forward(ids(source), decoder_input_ids=tokens), expected[1], target != SPECIALS.pad)
    assert_equal(model.length_logits(ids(source)), expected[2])


def test_padding_changes_nothing(pair, batch):
    net, _, single = pair
    # In double precision: in single precision, the rounding of some CPUs' kernels depends on the width of the padding.
    model = copy.deepcopy(single).double()
    source, target, masked = batch
    fed, tokens = ids(decoder_inputs(net, target)), ids(np.where(masked, net.specials.mask, target))
    right = np.pad(source, ((0, 0), (0, 3)), constant_values=SPECIALS.pad)
    left = np.stack([np.roll(row, (row == SPECIALS.pad).sum()) for row in right])
    wide = torch.nn.functional.pad(tokens, (0, 2), value=SPECIALS.pad)
    plain = model(input_ids=ids(source), decoder_input_ids=fed).logits
    plain_nar = model.nar_forward(ids(source), decoder_input_ids=tokens)
    real = torch.from_numpy(target != SPECIALS.pad)
    for padded in (right, left):
        for mask in (None, ids(padded != SPECIALS.pad)):
            again = model(input_ids=ids(padded), attention_mask=mask, decoder_input_ids=fed).logits
            torch.testing.assert_close(again, plain, atol=1e-9, rtol=0)
        again = model.nar_forward(ids(padded), decoder_input_ids=wide)[:, : tokens.shape[1]]
        torch.testing.assert_close(again[real], plain_nar[real], atol=1e-9, rtol=0)
    shifted = torch.nn.functional.pad(fed, (3, 0), value=SPECIALS.pad)
    seen = torch.nn.functional.pad(torch.ones_like(fed), (3, 0))
    again = model(input_ids=ids(source), decoder_input_ids=shifted, decoder_attention_mask=seen).logits[:, 3:]
    torch.testing.assert_close(again, plain, atol=1e-9, rtol=0)


def test_loss_is_the_cross_entropy_of_the_next_tokens(pair, batch, expected):
    net, _, model = pair
    source, target, _ = batch
    logits = log_softmax(expected[0], axis=-1)
    gold = target[:, 1:] if net.config.ar_start == "bos" else target
    real = gold != SPECIALS.pad
    mean = -np.take_along_axis(logits, gold[..., None], axis=-1)[..., 0][real].mean()
    ignored = ids(np.where(target == SPECIALS.pad, -100, target))
    for labels in (ids(target), ignored):
        assert abs(model(input_ids=ids(source), labels=labels).loss.item() - mean) < 1e-5
    fed = model.prepare_decoder_input_ids_from_labels(ignored)
    assert fed[0].tolist() == [model.config.decoder_start_token_id, *target[0].tolist()][-fed.shape[1] - 1 : -1]
    assert abs(model(input_ids=ids(source), decoder_input_ids=fed, labels=ignored).loss.item() - mean) < 1e-5


def test_saving_and_loading_change_nothing(pair, tmp_path):
    net, params, model = pair
    released = set(params_to_released(params, net.config))
    copies = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    assert set(model.state_dict()) == released | copies
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert type(again).__name__ == "JanusForConditionalGeneration"
    assert again.config.janus_jax == model.config.janus_jax
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert again.decoder.embed_tokens.weight is again.encoder.embed_tokens.weight
    for (name, one), (_, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def pairs(count, seed):
    """Sources of 3 to 8 tokens, and their targets: each token's successor, and that of the first token again at the end."""
    rng = np.random.default_rng(seed)
    sources = [rng.integers(5, VOCAB, rng.integers(3, LONGEST - 3)).tolist() for _ in range(count)]
    return sources, [[5 + (token - 4) % (VOCAB - 5) for token in [*source, source[0]]] for source in sources]


def train_batch(seed, sampler):
    """A batch [1, B, ...] of the toy task, with masked positions."""
    sources, targets = pairs(48, seed)
    arrays = {}
    for name, rows in (("source", sources), ("target", targets)):
        arrays[name] = np.full((len(rows), LONGEST), SPECIALS.pad, np.int32)
        for row, tokens in enumerate(rows):
            arrays[name][row, : len(tokens) + 2] = [SPECIALS.bos, *tokens, SPECIALS.eos]
    lengths = np.asarray([len(tokens) + 2 for tokens in targets])
    number = np.arange(len(lengths))
    uniforms = corruption.row_uniforms(0, seed, number, lengths, sampler.uniforms)
    masked, count = corruption.mask_positions(sampler.masks(uniforms, lengths), sampler.max_masked(LONGEST))
    batch = Batch(arrays["source"], arrays["target"], masked, count, number.astype(np.int32))
    return jax.tree.map(lambda x: x[None], batch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has partly learned the toy task: (generator, model)."""
    config = resolve(
        {
            "data": {"max_source_length": LONGEST, "max_target_length": LONGEST},
            "model": {
                "vocab_size": VOCAB, "d_model": 32, "ffn_dim": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 1,
                "max_positions": 32, "length_classes": 24, "vocab_multiple": 8, "dropout": 0.0, "dtype": "float32",
            },
            "optimizer": {"learning_rate": 6e-3, "warmup_steps": 30, "schedule": "cosine", "clip_norm": 1.0},
            "objective": {"label_smoothing": 0.0},
            "train": {"steps": 300},
        }
    )  # fmt: skip
    net, sampler = Janus(config.model, SPECIALS), corruption.make_sampler(config.data)
    state = jax.jit(lambda: init_state(net, config))()
    step = jax.jit(make_train_step(net, config), donate_argnums=0)
    for number in range(config.train.steps):
        state, metrics = step(state, train_batch(1 + number, sampler))
    assert 0.1 < float(metrics["nll/ar"]) < 1.2  # log 7 = 1.9 is chance: searches must choose between probable tokens
    generator = Generator(net, state.params, None, max_source_length=LONGEST, max_target_length=LONGEST + 8)
    return generator, load(export(net, state.params, tmp_path_factory.mktemp("trained") / "model"))


@pytest.fixture(scope="module", params=["trained", "random bart"])
def both(request, tmp_path_factory):
    """(generator, model): a trained one, and a random one that never predicts eos."""
    if request.param == "trained":
        return request.getfixturevalue("trained")
    net = tiny.net(vocab_size=VOCAB, **BART)
    arrays = lively(foreign.arrays_of(net))
    arrays[SHARED][SPECIALS.eos] = 0.0  # its logit is 0, which is never the largest
    params = params_from_released(arrays, net.config)
    generator = Generator(net, params, None, max_source_length=LONGEST, max_target_length=LONGEST + 8)
    return generator, load(export(net, params, tmp_path_factory.mktemp("random") / "model"))


def padded(sources, side="right"):
    width = max(map(len, sources)) + 2
    rows = [[SPECIALS.bos, *source, SPECIALS.eos] for source in sources]
    fill = [[SPECIALS.pad] * (width - len(row)) for row in rows]
    return torch.tensor([f + r if side == "left" else r + f for r, f in zip(rows, fill, strict=True)])


def bare(sequences):
    return [[t for t in row if t not in (SPECIALS.bos, SPECIALS.pad, SPECIALS.eos)] for row in sequences.tolist()]


def differing(generator, outputs, sequences, scores):
    """Number of outputs that differ; asserts that their scores are equal."""
    differ = 0
    for output, tokens, score in zip(outputs, bare(sequences), scores.tolist(), strict=True):
        assert abs(output.score - score) < 1e-4
        differ += output.tokens != tokens
    return differ


AR = [
    {"beam": 1},
    {"beam": 3, "stop": "best", "nbest": 3},
    {"beam": 3, "stop": "current", "nbest": 3, "lenpen": 0.4},
    {"beam": 4, "stop": "released"},
    {"beam": 2, "stop": "best", "lenpen": 2.0, "no_repeat_ngram": 2, "min_length": 4},
    {"beam": 3, "stop": "best", "nbest": 3, "min_length": 12},  # more than the length limit of short sources
]


def cases(*groups):
    """Parametrizes a test over (model, settings for it), ..."""
    chosen = [(model, settings) for model, group in groups for settings in group]
    names = [f"{model}: " + ",".join(f"{k}={v}" for k, v in settings.items()) for model, settings in chosen]
    return pytest.mark.parametrize(("both", "settings"), chosen, ids=names, indirect=["both"])


@cases(("trained", AR), ("random bart", AR[::4]))
def test_search_gives_the_same_tokens(both, settings):
    generator, model = both
    sources, _ = pairs(60, 10)
    decode = with_keywords(DecodeConfig(), {"max_length_a": 1.2, "max_length_b": 4, **settings})
    outputs = generator.generate_ids(sources, mode="ar", **settings, max_length_a=1.2, max_length_b=4)
    names = ("beam", "stop", "lenpen", "max_length_a", "max_length_b", "min_length", "no_repeat_ngram")
    search = {name: getattr(decode.ar, name) for name in names}
    config = default_generation_config(model.config, **search, max_target_length=generator.max_target_length)
    config.num_return_sequences, config.return_dict_in_generate, config.output_scores = decode.nbest, True, True
    generated = model.generate(padded(sources, "left"), generation_config=config)
    flat = [one for output in outputs for one in (output, *output.others)]
    if decode.ar.beam == 1:
        assert bare(generated.sequences) == [output.tokens for output in outputs]
        return
    assert differing(generator, flat, generated.sequences, generated.sequences_scores) == 0


def test_the_default_settings_generate_what_the_generator_does(both):
    generator, model = both
    sources, _ = pairs(20, 11)
    outputs = generator.generate_ids(sources)  # the defaults of DecodeConfig
    config = default_generation_config(model.config, max_target_length=generator.max_target_length)
    model.generation_config.max_length = config.max_length  # as the exporter writes it
    generated = model.generate(input_ids=padded(sources))
    assert generated[:, : len(model.config.start_tokens)].tolist() == [model.config.start_tokens] * len(sources)
    assert bare(generated) == [output.tokens for output in outputs]
    sampled = model.generate(padded(sources), do_sample=True, num_beams=1, max_new_tokens=6)
    assert all(SPECIALS.eos in row[2:] for row in sampled.tolist())
    assert not np.isin(bare(sampled)[0], [SPECIALS.mask]).any()


def test_a_limit_above_the_positions_is_lowered(both):
    _, model = both
    config = default_generation_config(model.config, beam=1, max_length_a=99.0, min_length=400)
    config.max_length = 500
    generated = model.generate(padded(pairs(3, 11)[0]), generation_config=config)
    assert generated.shape[1] == model.config.max_positions + len(model.config.start_tokens) - 1
    assert (generated[:, -1] == SPECIALS.eos).all()


def test_a_prefix_is_continued(both):
    generator, model = both
    sources, targets = pairs(20, 12)
    outputs = generator.generate_ids(sources, prefixes=[target[:2] for target in targets], beam=3, mode="ar")
    start = torch.tensor([[*model.config.start_tokens, *target[:2]] for target in targets])
    config = default_generation_config(model.config, beam=3, max_target_length=generator.max_target_length)
    # min_new_tokens counts only tokens after the prefix, min_length also the prefix.
    config.min_new_tokens = 0
    generated = model.generate(padded(sources), decoder_input_ids=start, generation_config=config)
    assert bare(generated) == [output.tokens for output in outputs]


NAR = [
    {"passes": 1, "length_beam": 1},
    {"passes": 4, "length_beam": 3},
    {"passes": 6, "length_beam": 5, "mask_schedule": "cosine", "early_stop": True},
    {"passes": 3, "length_beam": 4, "lengths": "contiguous", "merge_repeats": True},
    {"passes": 4, "length_beam": 3, "revise": True},
]


@cases(("trained", NAR), ("random bart", NAR[1:2]))
def test_mask_predict_gives_the_same_tokens(both, settings):
    generator, model = both
    sources, _ = pairs(60, 13)
    outputs = generator.generate_ids(sources, mode="nar", **settings)
    tokens, scores = model.generate_nar(
        padded(sources, "left"), max_length=generator.max_target_length, return_scores=True, **settings
    )
    assert (tokens[:, 0] == SPECIALS.bos).all()
    assert all((row == SPECIALS.eos).sum() == 1 for row in tokens)
    assert differing(generator, outputs, tokens, scores) == 0


def test_an_empty_source_gives_an_empty_output(trained):
    _, model = trained
    # Long enough that the partly trained model gives it an output.
    sentence = [0, 7, 8, 6, 9, 7, 10, 2]
    source = torch.tensor([[0, 2] + [1] * 6, sentence, [1] * 8])
    for generated in (model.generate_nar(source), model.generate(source), model.generate(source, num_beams=1)):
        assert bare(generated)[0] == bare(generated)[2] == []
        assert bare(generated)[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(input_ids=torch.ones(1, 3).long()), "nothing to decode"),
        (lambda m: m(decoder_input_ids=torch.zeros(1, 1).long()), "no source"),
        (lambda m: m(input_ids=torch.full((1, 50), 7), labels=torch.full((1, 3), 7)), "32 positions; cut"),
        (lambda m: m(input_ids=torch.full((1, 5), 7), labels=torch.full((1, 33), 7)), "32 positions; cut"),
        (lambda m: m.generate_nar(torch.full((1, 5), 7), length_beam=30), "lower it"),
        (lambda m: m.generate_nar(torch.full((1, 5), 7), passes=0), "at least 1"),
        (lambda m: m.generate_nar(torch.full((1, 5), 7), lengths="all"), "contiguous"),
        (lambda m: type(m.config)(norm="none"), "is not one of"),
        (lambda m: type(m.config)(heads=3), "choose a divisor"),
        (lambda m: default_generation_config(m.config, stop="never"), "is not one of"),
    ],
)
def test_mistakes_are_explained(trained, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained[1])


def test_every_stopping_rule_has_a_name_in_transformers():
    assert set(EARLY_STOPPING) == set(ArDecode.__annotations__["stop"].__args__)


@pytest.fixture(scope="module")
def bart():
    """A random BART of transformers, and a JAX model with its weights: (bart, net, params)."""
    preset = dataclasses.replace(PRESETS["bart_mini"], vocab_size=40, ar_stream="content", dropout=0.0)
    config = transformers.BartConfig(
        vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64, init_std=0.2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = transformers.BartForConditionalGeneration(config).eval()
    arrays = {
        name.removeprefix("model."): value.numpy()
        for name, value in stock.state_dict().items()
        if name.startswith("model.") and "shared" not in name
    }
    arrays["decoder.embed_length.weight"] = np.zeros((preset.length_classes, preset.d_model), np.float32)
    net = Janus(preset, SPECIALS)
    params = params_from_released(arrays, preset)
    return stock, net, params


def test_stock_bart(bart, tmp_path):
    stock, net, params = bart
    model = load(export(net, params, tmp_path / "model"))
    sources, _ = pairs(30, 14)
    source = padded(sources)
    mask = (source != SPECIALS.pad).long()
    fed = torch.tensor([[2, 0, *np.random.default_rng(row).integers(5, 40, 7)] for row in range(len(sources))])
    logits = stock(input_ids=source, attention_mask=mask, decoder_input_ids=fed).logits.detach().numpy()
    assert_equal(model(input_ids=source, decoder_input_ids=fed).logits, logits)
    ours = tiny.ar_logits(net, params, source.numpy().astype(np.int32), fed.numpy().astype(np.int32))
    ours = np.asarray(ours)[..., :40]
    assert np.abs(ours - logits).max() < 1e-4

    config = default_generation_config(model.config, beam=4, max_length_a=0.0, max_length_b=9, max_target_length=11)
    start = fed[:, :2]
    end = transformers.LogitsProcessorList([EndInTime(torch.tensor([12]), SPECIALS.eos)])
    theirs = stock.generate(
        source, attention_mask=mask, decoder_input_ids=start, generation_config=config, logits_processor=end
    )
    generator = Generator(net, params, None)
    outputs = generator.generate_ids(sources, mode="ar", beam=4, max_length_a=0.0, max_length_b=9)
    assert bare(theirs) == [output.tokens for output in outputs]
    assert torch.equal(model.generate(source, generation_config=config), theirs)


def test_training_moves_the_one_embedding(trained):
    _, model = trained
    fresh = JanusForConditionalGeneration(type(model.config)(**model.config.to_dict() | {"dropout": 0.1}))
    fresh.train()
    output = fresh(input_ids=torch.tensor([[0, 7, 8, 2]]), labels=torch.tensor([[0, 8, 7, 2]]))
    output.loss.backward()
    assert output.past_key_values is None
    assert fresh.decoder.output_projection.weight.grad is fresh.encoder.embed_tokens.weight.grad is not None
