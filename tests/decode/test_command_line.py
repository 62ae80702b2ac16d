"""`python -m janus_jax.decode` and `python -m janus_jax.evaluate` on a checkpoint, called as functions."""

import dataclasses
import json
import re
import shutil
import types
from io import BytesIO

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, config, text
from janus_jax.decode import Generator, Output, io, remask_counts
from janus_jax.decode.__main__ import main
from janus_jax.evaluate import __main__ as evaluate_module
from janus_jax.evaluate import settings as settings_module
from janus_jax.evaluate.__main__ import main as evaluate_main
from janus_jax.evaluate.trace_html import read_traces
from janus_jax.model import Janus
from tests import tiny

WORDS = "a man a woman two dogs ride run sees the green red old young house horse on in by and".split()
LINES = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(3 + i % 6)) for i in range(60)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tokenizer = text.train(LINES, config.TextConfig(vocab_size=290, byte_fallback=True))
    settings = config.resolve(
        {
            "model": {
                "d_model": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "max_positions": 64,
                "length_classes": 64, "dropout": 0.0,
            },
            "data": {"max_source_length": 48, "max_target_length": 48},
            "decode": {
                "ar": {"beam": 2, "max_length_a": 0.0, "max_length_b": 6}, "nar": {"passes": 2, "length_beam": 2},
            },
        }
    )  # fmt: skip
    net = Janus(
        dataclasses.replace(settings.model, vocab_size=tokenizer.vocab_size),
        tokenizer.specials,
    )
    path = tmp_path_factory.mktemp("run") / "step"
    checkpoint.write(path, tiny.drawn(net, 1), settings, tokenizer.to_bytes(), {"made_by": "test"})
    return path


@pytest.fixture(autouse=True)
def _no_compile_cache(monkeypatch):
    monkeypatch.setenv("JANUS_JAX_CACHE", "")


@pytest.mark.parametrize("mode", ["ar", "nar", "speculative"])
def test_each_input_line_gives_one_output_line(saved, tmp_path, mode):
    source = tmp_path / "in.txt"
    source.write_bytes(b"a man\n\nthe \xff dogs ride\n  \ntwo\xe2\x80\xa8horse\r\na man")
    arguments = [f"--checkpoint={saved}", f"--mode={mode}", f"--input={source}"]
    assert main([*arguments, f"--output={tmp_path / 'out.txt'}"]) == 0
    lines = (tmp_path / "out.txt").read_bytes().decode().split("\n")
    assert len(lines) == 7
    assert lines[1] == lines[3] == lines[6] == ""
    assert lines[0] == lines[5]
    assert main([*arguments, "--scores", f"--output={tmp_path / 'scored.txt'}"]) == 0
    scored = [line.split("\t", 1) for line in (tmp_path / "scored.txt").read_text().split("\n")[:-1]]
    assert [t for _, t in scored] == lines[:-1]
    assert all(float(score) <= 0 for score, _ in scored)


def test_standard_input_to_standard_output(saved, monkeypatch, capfdbinary):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=BytesIO(b"a man\n" + b"dogs " * 100 + b"\n")))
    assert main([f"--checkpoint={saved}", "--beam=1"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.count(b"\n") == 2
    assert b"line/s" not in err  # no bar without a terminal
    assert b"warning: 1 of 2 sources are longer than 46 tokens and were cut: line 2\n" in err


def test_unusable_input_is_named_with_status_2(saved, tmp_path, capsys):
    assert main([f"--checkpoint={tmp_path / 'nothing'}"]) == 2
    assert "nothing: no such directory" in capsys.readouterr().err
    assert main([f"--checkpoint={saved}", f"--input={tmp_path / 'none.txt'}"]) == 2
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("a\n")
    assert main([f"--checkpoint={saved}", f"--input={tmp_path / 'in.txt'}", "--beam=-1"]) == 2
    assert "error: beam: -1 must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["--mode=ar"])
    assert exit_.value.code == 2


def test_evaluation_of_a_checkpoint_under_several_settings(saved, tmp_path, capsys):
    (tmp_path / "src").write_text("\n".join(LINES[:6]) + "\n")
    (tmp_path / "ref").write_text("\n".join(LINES[:6]) + "\n")
    files = [f"--source={tmp_path / 'src'}", f"--references={tmp_path / 'ref'}"]
    settings = ["--setting=ar:beam=1", "--setting=nar:passes=2,length_beam=1"]
    arguments = [f"--checkpoint={saved}", *files, *settings, f"--output_dir={tmp_path / 'out'}"]
    assert evaluate_main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["setting"] for row in rows] == ["ar:beam=1", "nar:passes=2,length_beam=1"]
    assert {(row["model"], row["lines"]) for row in rows} == {(checkpoint.load(saved).checksum, 6)}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ar_beam1.txt", "nar_passes2_length_beam1.txt"]
    assert evaluate_main([*arguments]) == 0
    table = capsys.readouterr().out
    assert "| nar:passes=2,length_beam=1 |" in table
    assert "without compilation" in table
    assert evaluate_main([f"--checkpoint={saved}", *files, "--setting=ar:beem=1"]) == 2
    assert "did you mean beam?" in capsys.readouterr().err
    pairs = f"--pairs={tmp_path / 'pairs.tsv'}"
    (tmp_path / "pairs.tsv").write_text("".join(f"{line}\t{line}\n" for line in LINES[:6]))
    assert evaluate_main([f"--checkpoint={saved}", pairs, "--setting=ar:beam=1", "--task=coqa", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row.pop("coqa/mean") == row.pop("coqa/f1") < 100
    assert timeless(row) == timeless(rows[0])
    # Plain references that differ from the others, so that it shows which of them is compared with what.
    (tmp_path / "plain").write_text("other text\n" * 6)
    moses = ["--moses=en", f"--plain_references={tmp_path / 'plain'}"]
    assert evaluate_main([f"--checkpoint={saved}", pairs, "--setting=ar:beam=1", *moses]) == 0
    assert "| bleu_words |" in capsys.readouterr().out
    (tmp_path / "out.txt").write_text("".join(f"{line}\n" for line in LINES[:6]))
    scored = [f"--hypotheses={tmp_path / 'out.txt'}", f"--references={tmp_path / 'ref'}", "--json"]
    assert evaluate_main([*scored, *moses]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["bleu_words"] == pytest.approx(100)
    assert row["bleu"] == 0
    (tmp_path / "plain").write_text("other text\n")
    assert evaluate_main([*scored, *moses]) == 2
    assert f"{tmp_path / 'plain'} has 1 lines" in capsys.readouterr().err
    for content, message in (("a\tb\nab\n", "line 2: 1 column; give"), ("a\tb\tc\n", "line 1: 3 columns; give")):
        (tmp_path / "pairs.tsv").write_text(content)
        assert evaluate_main([f"--checkpoint={saved}", pairs]) == 2
        assert f"{pairs}, {message} source TAB reference" in capsys.readouterr().err
    (tmp_path / "pairs.tsv").write_text("")
    assert evaluate_main([f"--checkpoint={saved}", pairs]) == 2
    assert f"{tmp_path / 'pairs.tsv'} is empty; give at least one line" in capsys.readouterr().err


def timeless(row):
    """A row without what the clock says."""
    return {name: value for name, value in row.items() if "second" not in name}


@pytest.mark.slow
def test_the_best_setting_becomes_the_default_of_a_copy(saved, tmp_path, capsys, monkeypatch):
    # Of a checkpoint whose own settings give several outputs, and samples.
    loaded, own = checkpoint.load(saved), {"nbest": 3, "ar": {"sample": True}}
    settings = dataclasses.replace(loaded.config, decode=config.resolve({"decode": own}).decode)
    checkpoint.write(tmp_path / "own", loaded.params, settings, loaded.tokenizer, {"step": 1})
    (tmp_path / "src").write_text("\n".join(LINES[:6]) + "\n")
    # References that one setting meets best. Their words are too few for BLEU: chrF stands in for it.
    (tmp_path / "ref").write_text(
        "".join(f"{line}\n" for line in decoded(saved, tmp_path, "--mode=nar", "--passes=3", lines=LINES[:6]))
    )
    original = settings_module.score

    def scored(*texts):
        scores = original(*texts)
        return scores | {"bleu": scores["chrf"]}

    monkeypatch.setattr(settings_module, "score", scored)
    files = [f"--source={tmp_path / 'src'}", f"--references={tmp_path / 'ref'}"]
    settings = ["--setting=ar:beam=1", "--setting=nar:passes=3", "--setting=ar:beam=2"]
    given = f"--checkpoint={tmp_path / 'own'}"
    arguments = [given, *files, *settings, "--batch_tokens=99", f"--save_best={tmp_path / 'best'}"]
    assert evaluate_main(arguments) == 0
    before, after = checkpoint.load(tmp_path / "own"), checkpoint.load(tmp_path / "best")
    expected = dataclasses.replace(before.config.decode, mode="nar", nbest=1)
    assert after.config.decode == dataclasses.replace(expected, nar=dataclasses.replace(expected.nar, passes=3))
    assert dataclasses.replace(after.config, decode=before.config.decode) == before.config
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert after.about["setting"] == "nar:passes=3"
    said = f"wrote {tmp_path / 'best'} with nar:passes=3, the setting of the best BLEU\n"
    assert said in capsys.readouterr().err
    assert evaluate_main(arguments) == 2  # nothing is overwritten
    assert "best: exists already" in capsys.readouterr().err


def test_one_checkpoint_is_scored_and_saved_while_the_run_goes_on(saved, tmp_path, capsys, monkeypatch):
    """A newer checkpoint appears, and the one that is scored disappears, during the decoding."""
    loaded, folder = checkpoint.load(saved), tmp_path / "run"
    checkpoint.write(folder / "1", loaded.params, loaded.config, loaded.tokenizer, {"step": 1})
    scored = checkpoint.checksum(folder)
    (tmp_path / "pairs.tsv").write_text("a\tX\n")

    def evaluated(*_, **__):
        changed = jax.tree.map(lambda x: x + 1, loaded.params)
        checkpoint.write(folder / "2", changed, loaded.config, loaded.tokenizer, {"step": 2})
        shutil.rmtree(folder / "1")
        columns = {"bleu_signature": "", "chrf_signature": ""}
        return [{"setting": "ar", "hypotheses": ["X"], "bleu": 1.0, **columns}]

    monkeypatch.setattr(evaluate_module, "evaluate_settings", evaluated)
    files = [f"--checkpoint={folder}", f"--pairs={tmp_path / 'pairs.tsv'}", f"--save_best={tmp_path / 'best'}"]
    assert evaluate_main([*files, "--setting=ar", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == scored == checkpoint.checksum(tmp_path / "best")


def test_error_rates_choose_the_setting_with_the_fewest_wrong_lines(saved, tmp_path, capsys, monkeypatch):
    (tmp_path / "pairs.tsv").write_text("a\tX Y\na\tX\nb\tZ\n")
    outputs = {"ar": (["X Y", "X Y", "Y"], 9.0), "nar": (["X", "X", "Z"], 1.0)}
    columns = {"bleu_signature": "", "chrf_signature": ""}

    def evaluated(*_, **__):
        return [
            {"setting": name, "hypotheses": lines, "bleu": bleu, **columns} for name, (lines, bleu) in outputs.items()
        ]

    monkeypatch.setattr(evaluate_module, "evaluate_settings", evaluated)
    arguments = [f"--checkpoint={saved}", f"--pairs={tmp_path / 'pairs.tsv'}", "--setting=ar", "--setting=nar:passes=2"]
    assert evaluate_main([*arguments, "--error_rates", f"--save_best={tmp_path / 'best'}"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0][3:6] == ["token_error_rate", "|", "sequence_error_rate"]
    # "ar": one substitution in three tokens, one of two words wrong; "nar": both right, the nearer reference counts.
    assert [row[3:6:2] for row in table[2:4]] == [["33.33", "50.00"], ["0.00", "0.00"]]
    best = checkpoint.load(tmp_path / "best")
    assert best.config.decode.mode == "nar"
    assert best.about["sequence_error_rate"] == 0


def test_error_rates_of_a_file_ask_for_the_sources(tmp_path, capsys):
    for name, lines in (("sources", "r\nr\n"), ("references", "X Y\nX\n"), ("outputs", "X\nX\n")):
        (tmp_path / name).write_text(lines)
    files = [
        f"--hypotheses={tmp_path / 'outputs'}",
        f"--references={tmp_path / 'references'}",
        "--error_rates",
        "--json",
    ]
    rates = []
    for more in ([], [f"--source={tmp_path / 'sources'}"]):
        assert evaluate_main([*files, *more]) == 0
        out, err = capsys.readouterr()
        assert ("note: without --source" in err) == (not more)
        rates.append(json.loads(out)["sequence_error_rate"])
    assert rates == [50.0, 0.0]


def decoded(saved, tmp_path, *arguments, lines=LINES[:5]):
    """The lines that the command writes."""
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in lines))
    assert (
        main([f"--checkpoint={saved}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *arguments]) == 0
    )
    return (tmp_path / "out").read_text().split("\n")[:-1]


@pytest.mark.parametrize("arguments", [["--mode=ar"], ["--mode=nar"], ["--mode=ar", "--sample"]])
def test_nbest_gives_numbered_lines_best_first(saved, tmp_path, arguments):
    rows = [line.split("\t") for line in decoded(saved, tmp_path, "--nbest=2", *arguments)]
    assert [row[0] for row in rows] == [str(n) for n in range(1, 6) for _ in range(2)]
    best = decoded(saved, tmp_path, *arguments)
    if "--sample" not in arguments:
        assert [row[2] for row in rows[::2]] == best
        assert all(float(rows[i][1]) >= float(rows[i + 1][1]) for i in range(0, 10, 2))


def test_samples_depend_on_the_seed_alone(saved, tmp_path):
    first = decoded(saved, tmp_path, "--sample", "--seed=1")
    assert decoded(saved, tmp_path, "--sample", "--seed=1", "--batch_tokens=64") == first
    assert decoded(saved, tmp_path, "--sample", "--seed=2") != first


def test_samples_do_not_depend_on_the_chunk(saved, tmp_path, monkeypatch):
    lines = [LINES[0]] * 8  # the same sentence: only the line's number tells its samples apart
    whole = decoded(saved, tmp_path, "--sample", lines=lines)
    assert len(set(whole)) > 1
    monkeypatch.setattr(io, "CHUNK", 3)
    assert decoded(saved, tmp_path, "--sample", lines=lines) == whole


def test_prefixes_and_targets_to_complete(saved, tmp_path):
    rows = decoded(saved, tmp_path, "--format=tsv", "--mode=ar", lines=["two dogs\tthe red", "a man\tsees"])
    assert [row.split("\t")[1][:7] for row in rows] == ["the red", rows[1].split("\t")[1][:7]]
    assert rows[1].split("\t")[1].startswith("sees")
    target = json.dumps({"source": "two dogs", "target": "the <mask> dogs <mask> in"})
    (row,) = decoded(saved, tmp_path, "--format=jsonl", "--mode=nar", lines=[target])
    record = json.loads(row)
    assert record["target"] == "the <mask> dogs <mask> in"
    assert record["text"].startswith("the")
    assert record["text"].endswith("in")
    assert record["statistics"]["passes"] == 2


@pytest.mark.parametrize("merge", [False, True])
def test_reranking_gives_the_scores_of_teacher_forcing(saved, merge):
    generator = Generator.from_checkpoint(saved)
    sources = generator.tokenizer.encode_batch(LINES[:6])
    settings = {"mode": "nar", "passes": 1, "nbest": 2}
    plain = generator.generate_ids(sources, **settings, merge_repeats=merge)
    if merge:  # there is something to merge
        assert [one.tokens for one in plain] != [one.tokens for one in generator.generate_ids(sources, **settings)]
    reranked = generator.generate_ids(sources, **settings, merge_repeats=merge, rerank="ar")
    for source, output, other in zip(sources, reranked, plain, strict=True):
        candidates = [output, *output.others]
        assert {tuple(one.tokens) for one in candidates} == {tuple(one.tokens) for one in (other, *other.others)}
        assert candidates[0].score >= candidates[1].score
        for one in candidates:
            # The prefix is all that fits: the score is that of its tokens and eos.
            forced = generator.generate_ids([source], prefixes=[one.tokens], mode="ar", beam=1, max_length_b=0)[0]
            assert forced.tokens == one.tokens
            assert one.score == pytest.approx(forced.score, abs=1e-4)
            assert one.token_scores == pytest.approx(forced.token_scores, abs=1e-4)


def test_a_trace_holds_every_pass_of_every_sentence(saved, tmp_path):
    texts = decoded(
        saved, tmp_path, "--mode=nar", "--passes=3", f"--trace={tmp_path / 'trace'}", lines=[*LINES[:3], "", LINES[4]]
    )
    records = read_traces(tmp_path / "trace")
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["text"] for record in records] == texts
    assert [len(record["passes"]) for record in records] == [3, 3, 3, 0, 3]
    for record in records[:3]:
        slots = len(record["passes"][0]["tokens"])
        assert [sum(one["remasked"]) for one in record["passes"]] == remask_counts(slots + 2, 3)
        assert all(score <= 0 for one in record["passes"] for score in one["scores"])
    assert main([f"--checkpoint={saved}", f"--input={tmp_path / 'in'}", "--mode=ar", f"--trace={tmp_path / 'no'}"]) == 2
    assert not (tmp_path / "no").exists()


def test_impossible_combinations_are_named(saved, tmp_path, capsys):
    (tmp_path / "in").write_text("a\tb\n")
    arguments = [f"--checkpoint={saved}", f"--input={tmp_path / 'in'}"]
    assert main([*arguments, "--nbest=3"]) == 2
    assert "error: nbest: 3 exceeds beam 2; raise beam or lower nbest" in capsys.readouterr().err
    assert main([*arguments, "--passes=2"]) == 2
    assert "error: passes: mode ar has no such setting; it belongs to mode nar" in capsys.readouterr().err
    assert main([*arguments, "--mode=speculative", "--no_repeat_ngram=2"]) == 2
    assert "mode speculative verifies tokens side by side" in capsys.readouterr().err
    assert main([*arguments, "--mode=speculative", "--format=tsv"]) == 2
    assert "mode speculative takes nothing else" in capsys.readouterr().err


def test_gaps_are_filled_or_their_texts_scored(saved, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    gaps = [{"source": LINES[i], "target": "a <mask> runs on <mask><mask>", "id": i} for i in range(3)]
    source.write_text("".join(json.dumps(one) + "\n" for one in gaps))
    arguments = [f"--checkpoint={saved}", "--mode=infill", "--draft=always", "--format=jsonl", f"--input={source}"]
    assert main([*arguments, f"--output={tmp_path / 'filled.jsonl'}"]) == 0
    filled = [json.loads(line) for line in (tmp_path / "filled.jsonl").read_text().splitlines()]
    tokenizer = Generator.from_checkpoint(saved).tokenizer
    around = tokenizer.encode("a"), tokenizer.encode("runs on")
    for one, what in zip(gaps, filled, strict=True):
        assert what["id"] == one["id"]
        assert what["tokens"][: len(around[0])] == around[0]
        assert what["tokens"][len(around[0]) + 1 :][: len(around[1])] == around[1]
        assert what["score"] < 0
        assert 1 <= what["statistics"]["passes"] <= 5
    with_texts = [{**one, "infill": ["dog", "a horse"]} for one in gaps]
    source.write_text("".join(json.dumps(one) + "\n" for one in with_texts))
    assert main([*arguments, f"--output={tmp_path / 'scored.jsonl'}"]) == 0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [one["text"] for one in scored] == ["a dog runs on a horse"] * 3
    assert all(one["statistics"] == {"passes": 1} and one["score"] < 0 for one in scored)
    source.write_text(json.dumps(with_texts[0]) + "\n" + json.dumps(gaps[1]) + "\n")
    assert main(arguments) == 2
    assert "line 2: no infill, which other lines have" in capsys.readouterr().err
    source.write_text(json.dumps({**with_texts[0], "infill": "dog"}) + "\n")
    assert main(arguments) == 2
    assert "a list of texts, one for each gap" in capsys.readouterr().err


def test_all_texts_are_checked_before_the_first_is_decoded(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(io, "CHUNK", 2)
    for name in ("generate", "score_infills"):
        monkeypatch.setattr(Generator, name, lambda *_, **__: pytest.fail("decoded"))
    good = {"source": "a man", "target": "a <mask>", "infill": ["dog"]}
    arguments = [f"--checkpoint={saved}", "--mode=infill", "--format=jsonl", f"--input={tmp_path / 'in'}"]
    arguments.append(f"--output={tmp_path / 'out'}")
    for change, message in (
        ({"infill": ["dog", "cat"]}, "line 3: 2 texts for 1 gaps; give one for each run of <mask>"),
        ({"infill": [" "]}, "line 3: nothing to fill gap 1 with"),
        ({"target": "a man " * 50 + "<mask>"}, "tokens; at most 46 can be scored"),
        ({"source": " "}, "line 3: an empty source, for which nothing can be scored"),
    ):
        lines = [good, good, {**good, **change}, good]
        (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    # A model that cannot tell an unknown word from a gap.
    words = text.DictionaryTokenizer(b"a 1\nman 1\n")
    net = Janus(config.ModelConfig(vocab_size=words.vocab_size, d_model=16, heads=2), words.specials)
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: Generator(net, {}, words))
    (tmp_path / "in").write_text("a\ta <mask>\n" * 2 + "a\tthe <mask>\n")
    assert main([*arguments, "--format=tsv"]) == 2
    assert "line 3: 'the' holds a word that the tokenizer does not know" in capsys.readouterr().err
    # A source with more CTC rows than the model has positions.
    net = Janus(dataclasses.replace(net.config, ctc_ratio=2.0, max_positions=16), words.specials)
    (tmp_path / "in").write_text("a\n" * 3 + "a man a man a man a\n")
    assert main([arguments[0], "--mode=ctc", *arguments[3:]]) == 2
    said = capsys.readouterr().err
    assert "16 positions do not hold the 18 CTC rows of a source of 9 tokens; shorten it, choose another mode" in said
    assert "(the longest source is number 4)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_devices_are_limited_to_the_local_ones(saved, tmp_path, capsys):
    source = tmp_path / "in.txt"
    source.write_text("\n".join(LINES[:5]) + "\n")
    arguments = [f"--checkpoint={saved}", "--beam=1", f"--input={source}"]
    for count in (1, 2):
        assert main([*arguments, f"--devices={count}", f"--output={tmp_path / str(count)}"]) == 0
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()
    assert main([*arguments, "--devices=9"]) == 2
    assert "--devices=9: there are 8 here" in capsys.readouterr().err


def test_files_are_checked_before_a_model_is_loaded(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("a\n")
    before = sorted(tmp_path.iterdir())
    base = [f"--checkpoint={saved}", f"--input={tmp_path / 'file'}"]
    for flags, message in (
        ([f"--output={tmp_path / 'no/out'}"], "--output="),
        ([f"--trace={tmp_path / 'no/out'}"], "--trace="),
        ([f"--trace={tmp_path}"], "Is a directory"),
        ([f"--trace={tmp_path / 'file'}"], "--input names the same file"),
        (["--trace=-"], "--output names the same file"),
    ):
        assert main([*base, *flags]) == 2
        assert message in capsys.readouterr().err
    base = [f"--checkpoint={saved}", f"--source={tmp_path / 'file'}", f"--references={tmp_path / 'file'}"]
    for name in ("output_dir", "save_best"):
        for path, message in (("file/below", "Not a directory"), ("file", "Not a directory|exists already")):
            assert evaluate_main([*base, "--setting=ar:beam=1", f"--{name}={tmp_path / path}"]) == 2
            assert re.search(message, capsys.readouterr().err)
        assert evaluate_main([*base, "--setting=ar:beam=1", f"--{name}="]) == 2
        assert f"--{name}=: names no directory" in capsys.readouterr().err
    best = tmp_path / "best"
    for output in (best, best / "lines"):
        assert evaluate_main([*base, "--setting=ar:beam=1", f"--save_best={best}", f"--output_dir={output}"]) == 2
        assert f"--output_dir={output}: lies in --save_best={best}" in capsys.readouterr().err
    assert evaluate_main([*base, "--mode=nra"]) == 2
    assert "--mode=nra: 'nra' is not one of ar, nar" in capsys.readouterr().err
    (tmp_path / "file").write_text(" \n")
    for flag in ("--error_rates", "--task=xsum"):
        assert evaluate_main([*base, "--setting=ar:beam=1", flag]) == 2
        assert f"{tmp_path / 'file'}: all references are empty" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_command_runs_without_standard_error(saved, tmp_path, monkeypatch):
    (tmp_path / "in").write_text("a man\n")
    monkeypatch.setattr("sys.stderr", None)  # as Python has it after 2>&-
    assert (
        main([f"--checkpoint={saved}", "--beam=1", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]) == 0
    )
    assert (tmp_path / "out").read_text().count("\n") == 1
    assert main([f"--checkpoint={saved}", f"--input={tmp_path / 'none'}"]) == 2


def test_all_settings_are_checked_before_the_first_is_decoded(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Generator, "generate", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")  # of a training run, which this command does not join
    (tmp_path / "file").write_text("a\n")
    base = [f"--checkpoint={saved}", f"--source={tmp_path / 'file'}", f"--references={tmp_path / 'file'}"]
    for setting, message in (
        ("nar:beam=3", "beam: mode nar has no such setting; it belongs to mode ar"),
        ("infill", "targets: mode infill needs them"),
        ("ctc", "this model has no CTC rows"),
        ("nar:length_beam=63", "length_beam (or draft_lengths): 63 lengths wanted, but only 47 lie between 2 and 48"),
        ("speculative:draft_lengths=63", "length_beam (or draft_lengths): 63 lengths wanted"),
        ("speculative:draft_from=heads", "draft_from: heads, but the model has none"),
        ("speculative:draft_from=ctc", "draft_from: this model has no CTC rows (model.ctc_ratio 0); choose another"),
    ):
        assert evaluate_main([*base, "--setting=ar:beam=1", f"--setting={setting}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--hypotheses=a", "--references=b", "--setting=ar"],
            "--setting goes with --checkpoint, not with --hypotheses",
        ),
        (
            ["--traces=a", "--trace_html=b", "--json"],
            "--json goes with --glge or --hypotheses or --checkpoint, not with --traces",
        ),
        (["--hypotheses=a", "--references=b", "--moses=en"], "--moses and --plain_references go together"),
        (["--trace_html=b"], "--trace_html needs --traces"),
        (["--hypotheses=a", "--checkpoint=b"], "give --hypotheses, to score a file, or --checkpoint"),
        (["--checkpoint=a", "--source=b"], "--checkpoint needs --references"),
        (["--checkpoint=a", "--source=b", "--pairs=c"], "--pairs holds sources and references; leave --source out"),
        (["--hypotheses=a", "--pairs=c"], "--pairs goes with --checkpoint, not with --hypotheses"),
        (["--checkpoint=a", "--source=b", "--references=c", "--runs=0"], "--runs=0: at least one run"),
    ],
)
def test_flags_of_another_form_of_evaluate_are_named(flags, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        evaluate_main(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_of_glge_reads_its_sources_as_in_training(saved, tmp_path):
    loaded = checkpoint.load(saved)
    changed = dataclasses.replace(loaded.config, data=dataclasses.replace(loaded.config.data, source="glge"))
    checkpoint.write(tmp_path / "glge", loaded.params, changed, loaded.tokenizer, {"step": 1})
    assert Generator.from_checkpoint(tmp_path / "glge").source_marks == (" ##", "<S_SEP>")
    assert Generator.from_checkpoint(saved).source_marks == ()


def test_a_replaced_checkpoint_has_another_fingerprint(saved):
    first, second = Generator.from_checkpoint(saved), Generator.from_checkpoint(saved)
    assert first.fingerprint() == second.fingerprint()
    second.params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-3), second.params)
    assert first.fingerprint() != second.fingerprint()


def test_a_killed_run_does_not_resume_with_another_model(saved, tmp_path, monkeypatch):
    """The second model stands at the path of the first: outputs of both in one file would go unnoticed."""
    (tmp_path / "in").write_text("a\nb\nc\nd\n")
    arguments = [f"--checkpoint={saved}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(io, "CHUNK", 2)
    starts = []

    def generate(self, lines, *, first_line, **_):
        starts.append(first_line)
        if len(starts) == 2:
            raise io.LinesError("killed")
        return [Output(line, 0.0, []) for line in lines]

    monkeypatch.setattr(Generator, "generate", generate)
    assert main(arguments) == 2
    monkeypatch.setattr(Generator, "fingerprint", lambda _: "another")
    assert main(arguments) == 0
    assert starts == [0, 2, 0, 2]


def test_a_trace_of_no_sentences_is_written(saved, tmp_path):
    assert decoded(saved, tmp_path, "--mode=nar", f"--trace={tmp_path / 'trace'}", lines=[]) == []
    assert (tmp_path / "trace").read_bytes() == b""
