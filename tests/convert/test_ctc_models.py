"""CTC rows of exported models: PyTorch gives the same outputs."""

import itertools
import json
import sys

import jax
import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.convert import ConvertError, ImportRequest, export_model, import_model
from janus_jax.convert.fairseq import BLANK, params_from_released, params_to_released
from janus_jax.decode import Generator
from tests.convert import foreign
from tests.convert.parallel_models import bare, further_architectures, padded, sources, with_rows, with_searches

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module", params=further_architectures(with_rows("ctc")))
def each(request, export_of):
    return export_of(request.param)


def test_logits_of_ctc_rows(each):
    _, _, net, params, model = each
    lines, vocab = sources(12, net.config.vocab_size, 1), net.config.vocab_size

    @jax.jit
    def ours(params, source):
        rows, real = net.source_rows(params, "ctc", source, net.encode(params, source))
        return net.project(params, rows, blank=True), real

    logits, real = map(np.asarray, ours(params, padded(lines)))
    assert logits[..., vocab][real].std() > 0.2
    for side in ("right", "left"):
        with torch.no_grad():
            theirs, counts = model.ctc_forward(torch.from_numpy(padded(lines, side)))
        assert theirs.shape == (*real.shape, vocab + 1)
        assert counts.tolist() == real.sum(1).tolist()
        assert np.abs(theirs.numpy() - logits[..., : vocab + 1])[real].max() < 1e-4
    assert model.config.blank_token_id == vocab


@pytest.mark.parametrize(
    ("each", "beam", "penalty"),
    with_searches(with_rows("ctc"), [(1, 0.0), (4, 0.0), (4, 0.7)], common=(4, 0.7)),
    indirect=["each"],
)
def test_ctc_search_gives_the_same_tokens(each, beam, penalty):
    path, _, net, _, model = each
    lines = sources(60, net.config.vocab_size, 2)
    outputs = Generator.from_checkpoint(path).generate_ids(lines, mode="ctc", beam=beam, blank_penalty=penalty)
    for side in ("right", "left"):
        source = torch.from_numpy(padded(lines, side))
        ids, scores = model.generate_ctc(source, num_beams=beam, return_scores=True, blank_penalty=penalty)
        assert bare(ids) == [output.tokens for output in outputs]
        assert scores.tolist() == pytest.approx([output.score for output in outputs], rel=1e-5, abs=1e-4)
    rows = [model.config.ctc_slots(len(line) + 2) for line in lines]
    assert sum(rows) - sum(len(output.tokens) for output in outputs) > 60, "nothing merged, nothing blank"
    assert len({tuple(output.tokens) for output in outputs}) > 30, "the rows decide too little"


def test_several_outputs_fewer_tokens_and_a_limit(export_of):
    _, _, net, params, model = export_of("post-norm")
    lines = sources(40, net.config.vocab_size, 3)
    limited = Generator(net, params, None, max_target_length=8)
    outputs = limited.generate_ids(lines, mode="ctc", beam=5, nbest=3, tokens=3)
    ids, scores = model.generate_ctc(
        torch.from_numpy(padded(lines)),
        num_beams=5, ctc_tokens=3, num_return_sequences=3, max_length=8, return_scores=True,
    )  # fmt: skip
    flat = [one for output in outputs for one in (output, *output.others)]
    assert bare(ids) == [one.tokens for one in flat]
    assert scores.tolist() == pytest.approx([one.score for one in flat], rel=1e-5, abs=1e-4)
    assert max(len(one.tokens) for one in flat) == 6
    cut = limited.generate_ids(lines, mode="ctc", beam=1)
    assert bare(model.generate_ctc(torch.from_numpy(padded(lines)), max_length=8)) == [one.tokens for one in cut]
    for beams in (1, 3):
        assert not any(bare(model.generate_ctc(torch.from_numpy(padded(lines)), num_beams=beams, max_length=2)))


def test_a_beam_that_holds_every_prefix_adds_up_all_alignments(export_of, transformers):
    search = sys.modules[type(export_of("post-norm")[-1]).__module__]
    table = torch.log_softmax(2 * torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0)), -1)
    tokens = torch.tensor([7, 9]).expand(3, 4, 2)
    real = torch.arange(4) < torch.tensor([[4], [3], [0]])
    tokens_found, lengths, scores = search.prefix_beam_search(
        search.Emissions(tokens, table[..., :2], table[..., 2], real), beam=40, longest=3
    )
    for b, count in enumerate(real.sum(1).tolist()):
        sums = {}
        for path in itertools.product(range(3), repeat=count):
            merged = tuple((7, 9)[i] for i, _ in itertools.groupby(path) if i < 2)
            total = sum(float(table[b, row, i]) for row, i in enumerate(path))
            sums[merged] = np.logaddexp(sums.get(merged, -np.inf), total)
        expected = sorted(((p, output) for output, p in sums.items() if len(output) <= 3), reverse=True)
        exists = scores[b] > -np.inf
        assert [tuple(row[:n]) for row, n in zip(tokens_found[b].tolist(), lengths[b].tolist(), strict=True)] == [
            output for _, output in expected
        ] + [()] * int((~exists).sum())
        assert scores[b][exists].tolist() == pytest.approx([p for p, _ in expected], abs=1e-5)


def test_an_empty_source_gives_nothing(export_of):
    _, _, _, _, model = export_of("bart, source rows")
    source = torch.tensor([[0, 2, 1, 1], [0, 7, 8, 2], [1, 1, 1, 1]])
    for beams in (1, 3):
        outputs = bare(model.generate_ctc(source, num_beams=beams))
        assert outputs[0] == outputs[2] == []
        assert outputs[1]
    assert bare(model.generate_ctc(source[:1])) == [[]]


def test_a_model_saved_by_transformers_is_imported(export_of, bpe, tmp_path):
    _, _, _, params, model = export_of("post-norm")
    model.save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "janus_tokenizer.bin").write_bytes(bpe.to_bytes())
    import_model(ImportRequest("hf", tmp_path / "again", tmp_path / "back"))
    table = checkpoint.load(tmp_path / "back").params["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(table, params["embed_tokens"]["embedding"])


def test_the_code_of_the_model_card_runs(export_of):
    _, exported, _, _, _ = export_of("post-norm")
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "janus_ctc: trained for ar, ctc, speculative" in card
    code = "".join(part.split("```")[0] for part in card.split("```python\n")[1:])
    assert "model.generate(" in code
    assert "model.generate_ctc(" in code
    assert "model.generate_nar(" not in code  # not trained
    exec(compile(code.replace('"hf"', repr(str(exported))), "README.md", "exec"), {})


def test_generation_that_was_not_trained_is_refused(export_of):
    _, exported, _, _, model = export_of("post-norm")
    model = type(model).from_pretrained(exported)
    source = torch.from_numpy(padded(sources(2, model.config.vocab_size, 1)))
    message = r"trained only for ar and ctc, not for nar: .* set model.config.trained_modes to None"
    with pytest.raises(ValueError, match=message):
        model.generate_nar(source)
    with pytest.raises(ValueError, match="no DAG rows"):
        model.generate_dag(source)
    model.config.trained_modes = ["ctc"]
    with pytest.raises(ValueError, match="only for ctc, not for ar"):
        model.generate(source)
    with pytest.raises(ValueError, match="only for ctc, not for ar"):
        model.generate_ctc(source, rerank="ar")
    model.config.trained_modes = None
    assert model.generate_nar(source, passes=1).shape[0] == len(source)


def test_a_blank_without_ctc_rows_is_refused(export_of, tmp_path):
    path = export_of("post-norm")[0]
    export_model(path, "safetensors", tmp_path / "out")
    config = foreign.read_json(tmp_path / "out" / "config.json")
    config["model"]["ctc_ratio"], config["objective"]["name"] = 0.0, "ar"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConvertError, match=f"{BLANK}: this architecture has no such tensor"):
        import_model(ImportRequest("safetensors", tmp_path / "out", tmp_path / "back"))


def test_encoder_states_suffice_where_ctc_rows_read_no_tokens(export_of):
    model = export_of("bart, encoder rows, adapters")[-1]
    source = torch.tensor([[0, 7, 8, 9, 2]])
    with torch.no_grad():
        logits, counts = model.ctc_forward(encoder_outputs=model.encoder(source))
        assert counts.tolist() == [10]
        assert torch.equal(logits, model.ctc_forward(source)[0])


def test_released_names_there_and_back(export_of):
    _, _, net, params, _ = export_of("bart, source rows")
    released = params_to_released(params, net.config)
    np.testing.assert_array_equal(released[BLANK][0], params["embed_tokens"]["embedding"][net.blank])
    back = params_from_released(released, net.config)
    assert back["embed_tokens"]["embedding"].shape == (288, 16)
    assert "embed_blank" not in back["decoder"]
    np.testing.assert_array_equal(back["embed_tokens"]["embedding"], params["embed_tokens"]["embedding"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: m.generate_ctc(s, num_beams=0), "at least 1"),
        (lambda m, s: m.generate_ctc(s, ctc_tokens=0), "at least 1"),
        (lambda m, s: m.generate_ctc(s, num_beams=2, num_return_sequences=3), "3 of 2 beams"),
        (lambda m, s: m.generate_ctc(s, max_length=1), "cannot hold bos and eos"),
        (lambda m, s: m.generate_ctc(s.repeat(1, 9)), "68 CTC rows, but this model has 64 positions; cut the input"),
        (lambda m, s: m.ctc_forward(encoder_outputs=m.encoder(s)), "read the source tokens; pass them"),
        (lambda m, s: type(m.config)(ctc_ratio=-1.0), r"choose 0 \(no CTC rows\) or more"),
        (lambda m, s: type(m.config)(ctc_input="target"), "is not one of"),
        (lambda m, s: type(m.config)(ctc_positions="none"), "is not one of"),
        (lambda m, s: type(m.config)(parallel_adapter_rank=-1), "or more"),
        (lambda m, s: type(m)(type(m.config)(**TINY)).generate_ctc(s), "no CTC rows"),
        (lambda m, s: type(m)(type(m.config)(**TINY)).ctc_forward(s), "no CTC rows"),
    ],
)
def test_mistakes_are_explained(export_of, call, message):
    with pytest.raises(ValueError, match=message):
        call(export_of("bart, source rows")[-1], torch.tensor([[0, 7, 8, 9, 2]]))


TINY = {"vocab_size": 12, "d_model": 8, "ffn_dim": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
