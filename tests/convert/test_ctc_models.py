"""Exports of models with CTC rows and adapters: an import restores what only parallel rows use, and PyTorch gives the
same outputs."""

import functools
import itertools
import json
import re
import sys

import jax
import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.convert import ConvertError, ImportRequest, export_model, import_model
from janus_jax.convert.fairseq import BLANK, LENGTHS, SHARED, parallel_only, params_from_released, params_to_released
from janus_jax.decode import Generator
from tests.convert import foreign

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("safetensors.numpy")

# For 280 tokens: a table whose padding includes the blank, one padded only because of the blank, and one with much padding.
ARCHITECTURES = {
    "post-norm": {"ctc_ratio": 2.0, "vocab_multiple": 16},
    "bart, source rows": foreign.BART | {"ctc_ratio": 1.5, "ctc_input": "source", "vocab_multiple": 8},
    "pre-norm, mask is unk": {"ctc_ratio": 1.1, "norm": "pre", "mask_token": "unk", "vocab_multiple": 128},
    "bart, encoder rows, adapters": foreign.BART | {
        "ctc_ratio": 2.0, "ctc_input": "encoder", "ctc_positions": "own", "parallel_adapter_rank": 3,
    },
}  # fmt: skip
BARTS = [name for name in ARCHITECTURES if "bart" in name]
OF_PARALLEL_ROWS = ("ctc_ratio", "ctc_input", "ctc_positions", "parallel_adapter_rank")
ADAPTED = "self_attn.q self_attn.k self_attn.v self_attn.out encoder_attn.q encoder_attn.out fc1 fc2".split()
BOS, PAD, EOS = 0, 1, 2
LONGEST = 16  # most tokens of a source


@pytest.fixture(scope="module")
def bpe():
    return foreign.byte_bpe()


def write(path, bpe, **model):
    objective = {"name": "janus_ctc" if model.get("ctc_ratio") else "ar"}
    return foreign.write_checkpoint(
        path, bpe, config={"objective": objective}, change=lively, max_positions=64, **model
    )


def lively(arrays):
    """Arrays whose rows depend little on each other, where no token wins everywhere, and the blank wins sometimes."""
    for name, array in arrays.items():
        if re.search(r"^decoder\.layers\.\d+\.(self_attn\.out_(proj|adapter\.up)|fc2(_adapter\.up)?)\.weight$", name):
            arrays[name] = 0.1 * array
        if name.startswith("encoder.layers.1.final_layer_norm."):
            arrays[name] = 0.3 * array  # else the states that CTC rows read are so large that these become alike
        if name in (SHARED, BLANK):
            arrays[name] = (3 if name == BLANK else 1) * array / np.linalg.norm(array, axis=1, keepdims=True)
    return arrays


def write_ar_half(path, bpe, name):
    """Writes the checkpoint of an architecture without CTC rows and adapters; its arrays are those of the AR half."""
    write(path, bpe, **{key: value for key, value in ARCHITECTURES[name].items() if key not in OF_PARALLEL_ROWS})


def tensors_of_parallel_rows(config):
    """Names of the tensors that only parallel rows use, in a model with two decoder layers."""
    names = {BLANK}
    if config.ctc_positions == "own":
        names.add("decoder.embed_ctc_positions.weight")
    if config.parallel_adapter_rank:
        names |= {
            f"decoder.layers.{layer}.{adapted}_adapter.{half}.weight"
            for layer, adapted, half in itertools.product(range(2), ADAPTED, ("down", "up"))
        }
    return names


def load(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def export_of(bpe, tmp_path_factory, transformers):
    """A function: name of an architecture -> (checkpoint, export, network, parameters, PyTorch model), made once."""

    @functools.cache
    def export_of(name):
        folder = tmp_path_factory.mktemp("ctc")
        net, params = write(folder / "run", bpe, **ARCHITECTURES[name])
        export_model(folder / "run", "hf", folder / "hf")
        return folder / "run", folder / "hf", net, params, load(folder / "hf")

    return export_of


@pytest.fixture(scope="module", params=ARCHITECTURES)
def each(request, export_of):
    return export_of(request.param)


def sources(count, vocab, seed=0):
    """Sentences of 1 to 16 random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, vocab, rng.integers(1, LONGEST + 1)).tolist() for _ in range(count)]


def padded(lines, side="right"):
    width = max(map(len, lines)) + 2
    rows = [[BOS, *line, EOS] for line in lines]
    fill = [[PAD] * (width - len(row)) for row in rows]
    return np.array([f + r if side == "left" else r + f for f, r in zip(fill, rows, strict=True)])


def bare(ids):
    """Tokens between bos and eos of each row; asserts that only padding follows eos."""
    inner = []
    for row in ids.tolist():
        end = row.index(EOS)
        assert row[0] == BOS
        assert set(row[end + 1 :]) <= {PAD}
        inner.append(row[1:end])
    return inner


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


@pytest.mark.parametrize(("beam", "penalty"), [(1, 0.0), (4, 0.0), (4, 0.7)])
def test_ctc_search_gives_the_same_tokens(beam, penalty, each):
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


@pytest.mark.parametrize("form", ["hf", "fairseq", "safetensors"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_import_restores_an_export_bit_for_bit(name, form, export_of, tmp_path):
    path, _, net, params, _ = export_of(name)
    report = export_model(path, form, tmp_path / "out")
    assert tensors_of_parallel_rows(net.config) < set(report.used)
    notes = [note for note in report.notes if re.search("stored under 'janus_jax'|parallel_adapter_rank is 3", note)]
    assert len(notes) == (form == "fairseq") * (4 if net.config.parallel_adapter_rank else 1)
    assert any(BLANK in note for note in notes) == (form == "fairseq")
    import_model(ImportRequest(form, tmp_path / "out", tmp_path / "back"))
    before, after = checkpoint.load(path), checkpoint.load(tmp_path / "back")
    assert after.config == before.config
    assert (after.config.objective.name, after.config.model.ctc_ratio) == ("janus_ctc", net.config.ctc_ratio)
    assert jax.tree.structure(after.params) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert np.any(after.params["embed_tokens"]["embedding"][net.blank])


def test_a_model_saved_by_transformers_is_imported(export_of, bpe, tmp_path):
    _, _, _, params, model = export_of("post-norm")
    model.save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "janus_tokenizer.bin").write_bytes(bpe.to_bytes())
    import_model(ImportRequest("hf", tmp_path / "again", tmp_path / "back"))
    table = checkpoint.load(tmp_path / "back").params["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(table, params["embed_tokens"]["embedding"])


@pytest.mark.parametrize("name", BARTS)
def test_ctc_rows_change_nothing_in_the_other_modes_and_adapters_nothing_in_ar(name, export_of, bpe, tmp_path):
    _, exported, net, _, model = export_of(name)
    write_ar_half(tmp_path / "run", bpe, name)
    export_model(tmp_path / "run", "hf", tmp_path / "hf")
    arrays, plain = (numpy.load_file(folder / "model.safetensors") for folder in (exported, tmp_path / "hf"))
    assert arrays[BLANK].shape == (1, net.config.d_model)
    assert {one for one in arrays if one not in plain} == tensors_of_parallel_rows(net.config)
    arrays = {name: array for name, array in arrays.items() if name in plain}
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in plain.items()
    }
    assert arrays[SHARED].shape[0] == net.config.vocab_size
    ours, theirs = (foreign.read_json(folder / "config.json") for folder in (exported, tmp_path / "hf"))
    changed = {key for key in OF_PARALLEL_ROWS if key in ARCHITECTURES[name]}
    assert {key for key in ours if ours[key] != theirs[key]} == changed | {"janus_jax"}
    assert list(ours) == list(theirs)
    assert "generate_ctc" in (exported / "README.md").read_text()
    assert "CTC" not in (tmp_path / "hf" / "README.md").read_text()

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


def test_the_code_of_the_model_card_runs(export_of):
    _, exported, _, _, _ = export_of("post-norm")
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "janus_ctc: trained for ar, ctc, speculative" in card
    code = card.split("```python\n")[1].split("```")[0]
    assert code.count("not trained for it") == 1  # mask-predict
    exec(compile(code.replace('"hf"', repr(str(exported))), "README.md", "exec"), {})


@pytest.mark.parametrize("name", BARTS)
def test_a_bart_export_is_that_of_the_ar_half(name, export_of, bpe, tmp_path):
    path, _, net, _, _ = export_of(name)
    report = export_model(path, "bart", tmp_path / "ctc")
    left_out = dict(report.ignored)
    assert left_out.keys() == {LENGTHS} | tensors_of_parallel_rows(net.config)
    assert left_out[BLANK] == "only parallel rows use it, and BART has none"
    assert not left_out.keys() & set(report.used)
    write_ar_half(tmp_path / "run", bpe, name)
    report = export_model(tmp_path / "run", "bart", tmp_path / "plain")
    assert [name for name, _ in report.ignored] == [LENGTHS]
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "ctc" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    import_model(ImportRequest("hf", tmp_path / "ctc", tmp_path / "back"))
    back = checkpoint.load(tmp_path / "back").config.model
    assert (back.ctc_ratio, back.parallel_adapter_rank) == (0, 0)


@pytest.mark.parametrize("name", ["post-norm", "bart, encoder rows, adapters"])
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
        (lambda m, s: type(m.config)(ctc_ratio=-1.0), "or more"),
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
