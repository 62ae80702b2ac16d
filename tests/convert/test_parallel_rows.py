"""Exports of models with CTC rows, DAG rows and adapters: an import restores what only parallel rows use, and the other
modes stay as they are."""

import re

import jax
import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.convert import ConvertError, ImportRequest, export_model, import_model
from janus_jax.convert.fairseq import LENGTHS, SHARED, parallel_only
from janus_jax.decode import Generator
from tests.convert import foreign
from tests.convert.parallel_models import (
    ARCHITECTURES,
    BARTS,
    EOS,
    OF_PARALLEL_ROWS,
    PAD,
    SEARCHED,
    bare,
    further_architectures,
    load,
    objective,
    padded,
    sources,
    tensors_of_parallel_rows,
    write_ar_half,
)
from tests.further import further

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module", params=further_architectures(ARCHITECTURES))
def each(request, export_of):
    return export_of(request.param)


def test_logits_of_the_other_rows(each):
    _, _, net, params, model = each
    lines = sources(12, net.config.vocab_size, 5)
    source, target = padded(lines), padded(sources(12, net.config.vocab_size, 6))
    fed = np.where(target == PAD, EOS, target)  # no real row attends to what stands for padding
    fed = np.pad(fed, ((0, 0), (1, 0)), constant_values=EOS) if net.config.ar_start == "eos" else fed
    masked = np.where((target > EOS) & (target % 2 == 0), net.specials.mask, target)

    @jax.jit
    def ours(params, source, fed, masked):
        encoded = net.encode(params, source)
        ar, nar = net.ar_rows(params, encoded, fed), net.nar_rows(params, encoded, masked)
        return net.project(params, ar), net.project(params, nar)

    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(source)}
        theirs = (
            model(**inputs, decoder_input_ids=torch.from_numpy(fed)).logits,
            model.nar_forward(**inputs, decoder_input_ids=torch.from_numpy(masked)),
        )
    for logits, other, real in zip(ours(params, source, fed, masked), theirs, (fed >= 0, target != PAD), strict=True):
        expected = np.asarray(logits)[..., : net.config.vocab_size]
        assert expected[real].std() > 0.2
        assert np.abs(other.numpy() - expected)[real].max() < 1e-4


@pytest.mark.parametrize(
    "each",
    [name if name in (SEARCHED, "bart, encoder rows, adapters") else further(name) for name in ARCHITECTURES],
    indirect=True,
)
def test_searches_of_the_other_modes_give_the_same_tokens(each):
    path, _, net, _, model = each
    lines = sources(20, net.config.vocab_size, 7)
    generator, source = Generator.from_checkpoint(path), torch.from_numpy(padded(lines))
    ar = generator.generate_ids(lines, mode="ar")
    ids = model.generate(source)[:, len(model.config.start_tokens) - 1 :]
    assert bare(ids) == [output.tokens for output in ar]
    assert len({tuple(output.tokens) for output in ar}) > 10
    nar = generator.generate_ids(lines, mode="nar", passes=3, length_beam=2)
    ids = model.generate_nar(source, passes=3, length_beam=2, max_length=24)
    assert bare(ids) == [output.tokens for output in nar]
    assert len({tuple(output.tokens) for output in nar}) > 10


@pytest.mark.parametrize(
    ("family", "name", "search"),
    [
        ("ctc", "bart, encoder rows, adapters", {}),
        ("dag", "dag", {"search": "beam"}),
        ("dag", "bart, dag, adapters", {"search": "beam"}),
    ],
)
def test_the_ar_half_chooses_the_same_outputs(family, name, search, export_of):
    path, _, net, _, model = export_of(name)
    lines = sources(30, net.config.vocab_size, 8)
    generator, source = Generator.from_checkpoint(path), torch.from_numpy(padded(lines))
    outputs = generator.generate_ids(lines, mode=family, beam=4, nbest=2, rerank="ar", **search)
    generate = getattr(model, f"generate_{family}")
    settings = search | {"num_beams": 4, "num_return_sequences": 2, "return_scores": True}
    ids, scores = generate(source, rerank="ar", **settings)
    flat = [one for output in outputs for one in (output, *output.others)]
    assert bare(ids) == [one.tokens for one in flat]
    assert scores.tolist() == pytest.approx([one.score for one in flat], rel=1e-5, abs=1e-4)
    assert bare(ids) != bare(generate(source, **settings)[0])
    with pytest.raises(ValueError, match="rerank: 'nar' is not one of 'none', 'ar'"):
        generate(source, rerank="nar")


@pytest.mark.parametrize("form", ["hf", "fairseq", "safetensors"])
@pytest.mark.parametrize("name", further_architectures(ARCHITECTURES))
def test_an_import_restores_an_export_bit_for_bit(name, form, export_of, tmp_path):
    path, _, net, params, _ = export_of(name)
    report = export_model(path, form, tmp_path / "out")
    assert tensors_of_parallel_rows(net.config) < set(report.used)
    notes = [note for note in report.notes if re.search("stored under 'janus_jax'|parallel_adapter_rank is 3", note)]
    model = net.config
    # Adapters: where they are stored, and that the released code computes without them.
    expected = (model.ctc_ratio > 0) + (model.ctc_positions == "own") + 2 * (model.dag_ratio > 0)
    expected += 2 * (model.parallel_adapter_rank > 0) + (model.draft_heads > 0)
    assert len(notes) == (form == "fairseq") * expected
    assert any("decoder.dag_links.*" in note for note in notes) == (form == "fairseq" and model.dag_ratio > 0)
    import_model(ImportRequest(form, tmp_path / "out", tmp_path / "back"))
    before, after = checkpoint.load(path), checkpoint.load(tmp_path / "back")
    assert after.config == before.config
    assert after.config.objective.name == objective(ARCHITECTURES[name])
    assert (after.config.model.ctc_ratio, after.config.model.dag_ratio) == (model.ctc_ratio, model.dag_ratio)
    assert jax.tree.structure(after.params) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    if model.ctc_ratio:
        assert np.any(after.params["embed_tokens"]["embedding"][net.blank])


@pytest.mark.parametrize("name", BARTS)
def test_parallel_rows_change_nothing_in_the_other_modes_and_adapters_nothing_in_ar(name, export_of, bpe, tmp_path):
    _, exported, net, _, model = export_of(name)
    write_ar_half(tmp_path / "run", bpe, name)
    export_model(tmp_path / "run", "hf", tmp_path / "hf")
    arrays, plain = (numpy.load_file(folder / "model.safetensors") for folder in (exported, tmp_path / "hf"))
    assert {one for one in arrays if one not in plain} == tensors_of_parallel_rows(net.config)
    arrays = {name: array for name, array in arrays.items() if name in plain}
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in plain.items()
    }
    assert arrays[SHARED].shape[0] == net.config.vocab_size
    ours, theirs = (foreign.read_json(folder / "config.json") for folder in (exported, tmp_path / "hf"))
    changed = {key for key in OF_PARALLEL_ROWS if key in ARCHITECTURES[name]}
    assert {key for key in ours if ours[key] != theirs[key]} == changed | {"janus_jax", "trained_modes"}
    assert list(ours) == list(theirs)
    card, plain_card = ((folder / "README.md").read_text() for folder in (exported, tmp_path / "hf"))
    for family, ratio in (("ctc", net.config.ctc_ratio), ("dag", net.config.dag_ratio)):
        assert (f"generate_{family}" in card, family.upper() in card) == (ratio > 0, ratio > 0)
        assert family.upper() not in plain_card

    other = load(tmp_path / "hf")
    lines = sources(8, net.config.vocab_size, 4)
    source = torch.from_numpy(padded(lines))
    fed = torch.tensor([[2, 0, *range(9, 15)]] * len(lines))
    with torch.no_grad():
        both = [one(input_ids=source, decoder_input_ids=fed).logits for one in (model, other)]
    assert both[0].shape[-1] == net.config.vocab_size
    assert torch.equal(*both)
    assert torch.equal(model.generate(source, num_beams=2), other.generate(source, num_beams=2))
    (ids, scores), (other_ids, other_scores) = (
        one.generate_nar(source, passes=2, return_scores=True) for one in (model, other)
    )
    if net.config.parallel_adapter_rank:
        assert not torch.equal(ids, other_ids), "the adapters do nothing"
    else:
        assert torch.equal(ids, other_ids)
        assert torch.equal(scores, other_scores)


@pytest.mark.parametrize("name", BARTS)
def test_a_bart_export_is_that_of_the_ar_half(name, export_of, bpe, tmp_path):
    path, _, net, _, _ = export_of(name)
    report = export_model(path, "bart", tmp_path / "parallel")
    left_out = dict(report.ignored)
    assert left_out.keys() == {LENGTHS} | tensors_of_parallel_rows(net.config)
    assert set(left_out.values()) == {"BART predicts no lengths", "AR rows do not use it, and BART has no others"}
    assert not left_out.keys() & set(report.used)
    write_ar_half(tmp_path / "run", bpe, name)
    report = export_model(tmp_path / "run", "bart", tmp_path / "plain")
    assert [name for name, _ in report.ignored] == [LENGTHS]
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "parallel" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    import_model(ImportRequest("hf", tmp_path / "parallel", tmp_path / "back"))
    back = checkpoint.load(tmp_path / "back").config.model
    assert (back.ctc_ratio, back.dag_ratio, back.parallel_adapter_rank) == (0, 0, 0)


@pytest.mark.parametrize("name", ["pre-norm, mask is unk", "bart, encoder rows, adapters"])
def test_fairseq_files_hold_the_released_tensors_only(name, export_of, tmp_path):
    path, _, net, _, _ = export_of(name)
    export_model(path, "fairseq", tmp_path / "out")
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=False)
    assert not parallel_only(state["model"])
    assert set(state["janus_jax"]["tensors"]) == tensors_of_parallel_rows(net.config)
    assert len(state["model"][SHARED]) == net.config.vocab_size
    # A file that has lost them is refused.
    del state["janus_jax"]["tensors"]
    torch.save(state, tmp_path / "out" / "model.pt")
    with pytest.raises(ConvertError, match=r"is missing \(expected shape \(") as error:
        import_model(ImportRequest("fairseq", tmp_path / "out", tmp_path / "back"))
    assert str(error.value).split()[0] in tensors_of_parallel_rows(net.config)
