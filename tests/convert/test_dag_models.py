"""DAG rows of exported models: PyTorch gives the same graphs and the same outputs."""

import itertools
import json
import math
import sys
from collections import defaultdict

import jax
import numpy as np
import pytest

from janus_jax.convert import ConvertError, ImportRequest, export_model, import_model
from janus_jax.decode import Generator
from janus_jax.model.attention import NEGATIVE
from tests.convert import foreign
from tests.convert.parallel_models import bare, further_architectures, padded, sources, with_rows, with_searches
from tests.further import further

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module", params=further_architectures(with_rows("dag")))
def each(request, export_of):
    return export_of(request.param)


@pytest.fixture(scope="module")
def searches(export_of):
    """The module of the PyTorch model."""
    return sys.modules[type(export_of("dag")[-1]).__module__]


def assert_close(scores, expected):
    assert scores == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_logits_and_links_of_dag_rows(each):
    _, _, net, params, model = each
    lines, vocab = sources(12, net.config.vocab_size, 1), net.config.vocab_size

    @jax.jit
    def ours(params, source):
        rows, real = net.source_rows(params, "dag", source, net.encode(params, source))
        return net.project(params, rows), net.dag_links(params, rows, real), real

    logits, links, real = map(np.asarray, ours(params, padded(lines)))
    exists = links > NEGATIVE / 2
    assert logits[..., :vocab][real].std() > 0.2
    assert np.ptp(links[:, 0, 1:4]) > 0.5
    for side in ("right", "left"):
        with torch.no_grad():
            theirs, their_links, counts = (x.numpy() for x in model.dag_forward(torch.from_numpy(padded(lines, side))))
        assert theirs.shape == (*real.shape, vocab)
        assert counts.tolist() == real.sum(1).tolist()
        assert np.abs(theirs - logits[..., :vocab])[real].max() < 1e-4
        np.testing.assert_array_equal(np.isneginf(their_links), ~exists)
        np.testing.assert_allclose(their_links[exists], links[exists], rtol=1e-5, atol=1e-4)


SEARCHES = [
    ({}, {}),
    ({"search": "viterbi", "length_beta": 1.3}, {}),
    ({"search": "beam", "beam": 3, "tokens": 2, "length_beta": 0.6}, {"num_beams": 3, "dag_tokens": 2}),
]
MORE_SEARCHES = [({"search": "greedy"}, {}), ({"search": "lookahead", "beta": 0.3, "length_beta": 0.0}, {})]


@pytest.mark.parametrize(
    ("each", "ours", "theirs"),
    with_searches(with_rows("dag"), SEARCHES, common=({}, {}))
    + [further(name, *search) for name in with_rows("dag") for search in MORE_SEARCHES],
    indirect=["each"],
)
def test_each_search_gives_the_same_tokens(each, ours, theirs):
    path, _, net, _, model = each
    lines = sources(60, net.config.vocab_size, 2)
    outputs = Generator.from_checkpoint(path).generate_ids(lines, mode="dag", **ours)
    settings = {name: ours[name] for name in ("search", "beta", "length_beta") if name in ours} | theirs
    for side in ("right", "left"):
        ids, scores = model.generate_dag(torch.from_numpy(padded(lines, side)), return_scores=True, **settings)
        assert bare(ids) == [output.tokens for output in outputs]
        assert_close(scores.tolist(), [output.score for output in outputs])
    assert len({tuple(output.tokens) for output in outputs}) > 30, "the rows decide too little"


def test_several_outputs_and_a_limit(export_of):
    _, _, net, params, model = export_of("dag")
    lines = sources(40, net.config.vocab_size, 3)
    limited, source = Generator(net, params, None, max_target_length=6), torch.from_numpy(padded(lines))
    outputs = limited.generate_ids(lines, mode="dag", search="beam", beam=4, nbest=3)
    ids, scores = model.generate_dag(
        source, search="beam", num_beams=4, num_return_sequences=3, max_length=6, return_scores=True
    )
    flat = [one for output in outputs for one in (output, *output.others)]
    assert bare(ids) == [one.tokens for one in flat]
    assert_close(scores.tolist(), [one.score for one in flat])
    for search in ("lookahead", "viterbi"):
        outputs = limited.generate_ids(lines, mode="dag", search=search)
        ids, scores = model.generate_dag(source, search=search, max_length=6, return_scores=True)
        assert bare(ids) == [output.tokens for output in outputs]
        assert_close(scores.tolist(), [output.score for output in outputs])
        assert max(map(len, bare(ids))) == 4
        assert not any(bare(model.generate_dag(source, search=search, max_length=2)))


def random_graphs(searches, counts, vertices, kinds):
    """Random graphs with counts[b] real vertices, each of which offers all tokens; numbers of padding are NaN."""
    rng = np.random.default_rng(0)
    real = torch.arange(vertices) < torch.tensor(counts)[:, None]
    behind = torch.ones(vertices, vertices, dtype=torch.bool).triu(1)
    scores = torch.from_numpy(rng.normal(0, 1.5, (len(counts), vertices, vertices))).float()
    exists = behind & real[:, None] & real[:, :, None]
    links = scores.masked_fill(~exists, -1e30).log_softmax(-1).masked_fill(~exists, -math.inf)
    links = links.masked_fill(~(real[:, None] & real[:, :, None]), math.nan)
    emitted = torch.from_numpy(rng.normal(0, 1.5, (len(counts), vertices, kinds))).float().log_softmax(-1)
    log_probs, order = emitted.sort(dim=-1, descending=True)
    return searches.graph_of(links, 7 + 2 * order, log_probs.masked_fill(~real[..., None], math.nan), real)


def outputs_of(graph, b, length_beta, longest, count):
    """(score, output) of each output of one sentence whose vertices emit their `count` best tokens, best first; and the
    same of each path."""
    links, sums, paths = graph.links[b].double().numpy(), defaultdict(list), []
    last = int(graph.last[b])
    for size in range(min(longest, max(last - 1, 0)) + 1):
        for inner in itertools.combinations(range(1, last), size):
            total = sum(links[a, c] for a, c in itertools.pairwise((0, *inner, last)))
            for choice in itertools.product(range(count), repeat=size):
                output = tuple(int(graph.tokens[b, j, c]) for j, c in zip(inner, choice, strict=True))
                chance = total + sum(float(graph.log_probs[b, j, c]) for j, c in zip(inner, choice, strict=True))
                sums[output].append(chance)
                paths.append((chance / (size + 1) ** length_beta, output))
    totals = [(np.logaddexp.reduce(parts) / (len(o) + 1) ** length_beta, o) for o, parts in sums.items()]
    return sorted(totals, reverse=True), sorted(paths, reverse=True)


@pytest.mark.parametrize(("longest", "length_beta"), [(7, 1.0), (2, 0.6)])
def test_searches_equal_the_enumeration_of_all_paths(longest, length_beta, searches, transformers):
    counts = [5, 4, 2, 1, 0, 5]
    graph = random_graphs(searches, counts, 5, 2)
    beam = 20
    tokens, lengths, scores = searches.graph_beam_search(graph, beam, length_beta, longest)
    best_tokens, best_lengths, best_scores = searches.viterbi(graph, length_beta, longest)
    for b in range(len(counts)):
        expected, _ = outputs_of(graph, b, length_beta, longest, 2)
        missing = beam - len(expected)
        assert missing > 0
        found = [tuple(row[:n]) for row, n in zip(tokens[b].tolist(), lengths[b].tolist(), strict=True)]
        assert found == [output for _, output in expected] + [()] * missing
        assert_close(scores[b].tolist(), [score for score, _ in expected] + [-math.inf] * missing)
        _, paths = outputs_of(graph, b, length_beta, longest, 1)
        assert_close(best_scores[b].tolist(), [paths[0][0]])
        assert tuple(best_tokens[b, 0, : int(best_lengths[b])].tolist()) == paths[0][1]


def test_a_graph_without_a_way_to_its_end_has_no_output(searches, transformers):
    links = torch.full((1, 4, 4), -math.inf)
    links[0, 0, 1] = links[0, 2, 3] = 0.0
    tokens, log_probs = torch.tensor([[[0], [7], [8], [0]]]), torch.zeros(1, 4, 1)
    graph = searches.graph_of(links, tokens, log_probs, torch.ones(1, 4, dtype=torch.bool))
    for _, lengths, scores in (
        searches.follow(graph, 1.0, 1.0, 4),
        searches.viterbi(graph, 1.0, 4),
        searches.graph_beam_search(graph, 2, 1.0, 4),
    ):
        assert not lengths.any()
        assert torch.isneginf(scores).all()


@pytest.mark.parametrize("search", ["greedy", "lookahead", "viterbi", "beam"])
def test_an_empty_source_gives_nothing(search, export_of):
    model = export_of("bart, dag, adapters")[-1]
    source = torch.tensor([[0, 2, 1, 1], [0, 7, 8, 2], [1, 1, 1, 1]])
    ids, scores = model.generate_dag(source, search=search, return_scores=True)
    outputs = bare(ids)
    assert outputs[0] == outputs[2] == []
    assert outputs[1]
    assert scores.tolist()[::2] == [0.0, 0.0]
    assert bare(model.generate_dag(source[:1], search=search)) == [[]]


@pytest.mark.parametrize("settings", [{}, {"search": "beam", "beam": 3, "tokens": 2, "rerank": "ar"}])
def test_the_code_of_the_model_card_runs(settings, bpe, tmp_path, transformers):
    config = {"objective": {"name": "janus_dag"}, "decode": {"dag": settings}}
    foreign.write_checkpoint(tmp_path / "run", bpe, config=config, max_positions=64, dag_ratio=2.0)
    export_model(tmp_path / "run", "hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "a token at a time (autoregressively) or many tokens at once (DAG)" in card
    assert "janus_dag: trained for ar, dag" in card
    arguments = 'search="beam", length_beta=1.0, num_beams=3, dag_tokens=2, rerank="ar"'
    assert (arguments if settings else 'search="lookahead", length_beta=1.0, beta=1.0') in card
    code = "".join(part.split("```")[0] for part in card.split("```python\n")[1:])
    exec(compile(code.replace('"hf"', repr(str(tmp_path / "hf"))), "README.md", "exec"), {})


def test_links_without_dag_rows_are_refused(export_of, tmp_path):
    export_model(export_of("dag")[0], "safetensors", tmp_path / "out")
    config = foreign.read_json(tmp_path / "out" / "config.json")
    config["model"]["dag_ratio"], config["objective"]["name"] = 0.0, "ar"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConvertError, match=r"decoder\.(dag_links|embed_dag_positions).* no such tensor"):
        import_model(ImportRequest("safetensors", tmp_path / "out", tmp_path / "back"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: m.generate_dag(s, search="best"), "search: 'best' is not one of 'greedy', 'lookahead'"),
        (lambda m, s: m.generate_dag(s, search="beam", num_beams=0), "num_beams: 0; it must be at least 1"),
        (lambda m, s: m.generate_dag(s, dag_tokens=0), "dag_tokens: 0; it must be at least 1"),
        (lambda m, s: m.generate_dag(s, search="beam", num_return_sequences=6), "6 of 5 beams"),
        (lambda m, s: m.generate_dag(s, num_return_sequences=2), "search 'lookahead' has one output"),
        (lambda m, s: m.generate_dag(s, max_length=1), "cannot hold bos and eos"),
        (lambda m, s: m.generate_dag(s.repeat(1, 9)), "68 DAG rows, but this model has 64 positions; cut the input"),
        (lambda m, s: m.generate_ctc(s), "no CTC rows"),
        (lambda m, s: type(m.config)(dag_ratio=-1.0), r"choose 0 \(no DAG rows\) or more"),
    ],
)
def test_mistakes_are_explained(export_of, call, message):
    with pytest.raises(ValueError, match=message):
        call(export_of("bart, dag, adapters")[-1], torch.tensor([[0, 7, 8, 9, 2]]))


def test_a_model_without_dag_rows_says_so(export_of):
    model = export_of("post-norm")[-1]
    for call in (model.generate_dag, model.dag_forward):
        with pytest.raises(ValueError, match="no DAG rows"):
            call(torch.tensor([[0, 7, 2]]))
