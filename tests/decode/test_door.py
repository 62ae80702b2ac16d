"""`python -m janus_jax.decode` and `python -m janus_jax.evaluate` on a checkpoint, called as functions."""

import dataclasses
import io
import json
import logging
import types

import jax
import pytest

from janus_jax import checkpoint, config, text
from janus_jax.decode.__main__ import main
from janus_jax.evaluate.__main__ import main as evaluate_main
from janus_jax.model import Janus

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
            "decode": {"beam": 2, "passes": 2, "length_beam": 2, "max_length_a": 0.0, "max_length_b": 6},
        }
    )  # fmt: skip
    net = Janus(
        dataclasses.replace(settings.model, vocab_size=tokenizer.vocab_size),
        tokenizer.specials,
    )
    path = tmp_path_factory.mktemp("run") / "step"
    checkpoint.write(path, net.init(jax.random.key(1)), settings, tokenizer.to_bytes(), {"made_by": "test"})
    return path


@pytest.fixture(autouse=True)
def _no_compile_cache(monkeypatch):
    monkeypatch.setenv("JANUS_JAX_CACHE", "")


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_as_many_lines_come_out_as_went_in(saved, tmp_path, mode):
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


def test_standard_input_to_standard_output(saved, monkeypatch, capfdbinary, caplog):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a man\n" + b"dogs " * 100 + b"\n")))
    with caplog.at_level(logging.WARNING):
        assert main([f"--checkpoint={saved}", "--beam=1"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.count(b"\n") == 2
    assert b"line/s" not in err  # no bar without a terminal
    assert "1 of 2 sources are longer than 46 tokens" in caplog.text


def test_what_cannot_be_used_is_named_with_status_2(saved, tmp_path, capsys):
    assert main([f"--checkpoint={tmp_path / 'nothing'}"]) == 2
    assert "nothing: no such directory" in capsys.readouterr().err
    assert main([f"--checkpoint={saved}", f"--input={tmp_path / 'none.txt'}"]) == 2
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("a\n")
    assert main([f"--checkpoint={saved}", f"--input={tmp_path / 'in.txt'}", "--beam=-1"]) == 2
    assert "config.decode.beam" in capsys.readouterr().err
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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ar_beam1.txt", "nar_passes2_length_beam1.txt"]
    assert evaluate_main([*arguments]) == 0
    table = capsys.readouterr().out
    assert "| nar:passes=2,length_beam=1 |" in table
    assert "without compilation" in table
    assert evaluate_main([f"--checkpoint={saved}", *files, "--setting=ar:beem=1"]) == 2
    assert "did you mean config.decode.beam" in capsys.readouterr().err
