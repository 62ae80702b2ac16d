"""Draft heads of exported models: PyTorch drafts the same tokens, and its outputs are those of greedy `generate`."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.convert import ImportRequest, export_model, import_model
from janus_jax.decode import Generator
from janus_jax.model import draft_vocab
from janus_jax.types import Encoded
from tests import tiny
from tests.convert.parallel_models import PAD, padded, sources

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module", params=["heads", "bart, heads and rows"])
def each(request, export_of):
    return export_of(request.param)


def without_padding(rows):
    return [[token for token in row if token != PAD] for row in rows.tolist()]


def test_rows_of_heads_are_equal(each):
    _, _, net, params, model = each
    step, rng = jax.jit(net.draft_step), np.random.default_rng(0)
    row = rng.normal(size=(5, net.config.d_model)).astype(np.float32)
    states = rng.normal(size=(5, 7, net.config.d_model)).astype(np.float32)
    real = np.arange(7) < np.array([7, 3, 1, 5, 6])[:, None]
    encoded = Encoded(states, real, np.zeros((5, 1), np.float32))
    bias = torch.zeros(5, 1, 1, 7).masked_fill(~torch.from_numpy(real)[:, None, None], -1e30)
    scale = net.config.d_model**0.5 if net.config.scale_embedding else 1.0
    np.testing.assert_array_equal(
        model.draft_heads.start.weight.detach(), jax.jit(net.draft_start, static_argnums=1)(params, 1)
    )
    theirs = torch.from_numpy(row)
    for _ in range(net.config.draft_heads):
        tokens = rng.integers(5, net.config.vocab_size, 5)
        row = np.asarray(step(params, encoded, row, tokens))
        with torch.no_grad():
            vectors = scale * model.decoder.embed_tokens.weight[torch.from_numpy(tokens)]
            theirs = model.draft_heads(theirs, vectors, torch.from_numpy(states), bias)
        np.testing.assert_allclose(theirs.numpy(), row, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokens_are_those_of_generate_in_as_many_passes_as_here(each, side):
    run, _, net, _, model = each
    generator = Generator.from_checkpoint(run)
    lines = sources(12, net.config.vocab_size, 3)
    ids = torch.from_numpy(padded(lines, side))
    greedy = without_padding(model.generate(ids, num_beams=1))
    tokens, passes = model.generate_speculative(ids, return_passes=True)
    assert without_padding(tokens) == greedy
    assert len({tuple(row) for row in greedy}) > 6, "the outputs must differ"
    single = model.generate_speculative(ids, draft_tokens=1)
    assert without_padding(single) == greedy
    frame = len(model.config.start_tokens)
    assert all(1 <= n <= len(row) - frame for n, row in zip(passes.tolist(), greedy, strict=True))
    ours = generator.generate_ids(lines, mode="speculative", draft="always", draft_from="heads")
    assert [list(output.tokens) for output in ours] == [row[frame:-1] for row in greedy]
    assert [output.statistics["passes"] for output in ours] == passes.tolist()


def test_the_first_drafts_come_from_the_start_bos_and_the_source(each):
    _, _, net, params, model = each
    (line,) = sources(1, net.config.vocab_size, 4)
    rows = []
    hook = model.draft_heads.register_forward_hook(lambda _, read, row: rows.append((read, row)))
    model.generate_speculative(torch.from_numpy(padded([line, line * 2])[:1]))  # with padding
    hook.remove()
    encoded = jax.jit(net.encode)(params, np.array([[net.specials.bos, *line, net.specials.eos]]))
    expected, token = net.draft_start(params, 1), net.specials.bos
    scale = net.config.d_model**0.5 if net.config.scale_embedding else 1.0
    for (_, vector, *_), row in rows[: net.config.draft_heads]:
        table = params["embed_tokens"]["embedding"]
        np.testing.assert_allclose(vector.detach().numpy()[0], scale * table[token], rtol=1e-5, atol=1e-5)
        expected = jax.jit(net.draft_step)(params, encoded, expected, np.array([token]))
        np.testing.assert_allclose(row.detach().numpy(), expected, rtol=1e-4, atol=1e-3)
        choices = np.asarray(expected[0] @ table[: min(draft_vocab(net.config), net.config.vocab_size)].T)
        token = int(np.argmax(np.where(np.isin(np.arange(len(choices)), [PAD, net.specials.mask]), -np.inf, choices)))


def test_bad_settings_are_refused(each, monkeypatch):
    _, _, _, _, model = each
    ids = torch.tensor([[0, 7, 2]])
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"draft_tokens: {count}; choose 1 to {model.config.draft_heads}"):
            model.generate_speculative(ids, draft_tokens=count)
    for name, value in (("no_repeat_ngram_size", 3), ("begin_suppress_tokens", [7]), ("sequence_bias", [[[7], -1.0]])):
        monkeypatch.setattr(model, "generation_config", transformers.GenerationConfig(max_length=9, **{name: value}))
        with pytest.raises(ValueError, match=f"{name}: generate_speculative has no such setting"):
            model.generate_speculative(ids)


def test_a_generation_config_without_values_is_read(each, monkeypatch):
    _, _, net, _, model = each
    ids = torch.tensor([[0, 7, 9, 2]])
    monkeypatch.setattr(model, "generation_config", transformers.GenerationConfig())
    tokens = model.generate_speculative(ids)
    frame = len(model.config.start_tokens)
    assert frame < tokens.shape[1] < frame + net.config.max_positions


def test_a_negative_vocabulary_of_drafts_is_refused(each):
    config = type(each[-1].config)
    with pytest.raises(ValueError, match="draft_vocab: -1; choose 0"):
        config(draft_vocab=-1)


def test_a_model_without_heads_says_so(export_of):
    model = export_of("dag")[-1]
    with pytest.raises(ValueError, match="draft_heads: this model has none"):
        model.generate_speculative(torch.tensor([[0, 7, 2]]))


def test_an_export_comes_back(each, tmp_path):
    _, export, net, params, _ = each
    import_model(ImportRequest("hf", export, tmp_path / "back"))
    back = Generator.from_checkpoint(tmp_path / "back")
    assert dataclasses.replace(back.net.config, dropout=net.config.dropout) == net.config
    np.testing.assert_array_equal(*(each["draft_heads"]["start"]["embedding"] for each in (back.params, params)))
    for part in ("query", "key", "inner", "outer"):
        np.testing.assert_array_equal(back.params["draft_heads"][part]["kernel"], params["draft_heads"][part]["kernel"])


def test_wide_models_have_the_same_heads(each):
    config = copy.copy(each[4].config)
    config.d_model = 96  # wider than the query
    theirs = {name: tuple(part.shape)[::-1] for name, part in type(each[4].draft_heads)(config).named_parameters()}
    ours = tiny.abstract(d_model=96, draft_heads=2)[1]["draft_heads"]
    assert ours["query"]["kernel"].shape == (192, 64)
    for part in ("query", "key", "inner", "outer"):
        assert ours[part]["kernel"].shape == theirs[f"{part}.weight"], part


def test_formats_without_heads_leave_them_out(export_of, tmp_path):
    run = export_of("bart, heads and rows")[0]
    report = export_model(run, "bart", tmp_path / "bart")
    assert any("draft_heads.inner.weight" in name for name, _ in report.ignored)
