"""What the README says: its commands run, its tree and its files exist."""

import importlib
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from janus_jax import text
from janus_jax.config import TextConfig
from janus_jax.convert.hf_tokenizer import tokenizer_files
from janus_jax.data import demo

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Smaller than the experiment that the README names, so that its commands take seconds.
TINY = """
    --config.text.vocab_size=150 --config.text.byte_fallback=False --config.text.character_coverage=1.0
    --config.data.buckets=1 --config.data.tokens_per_batch=1024
    --config.model.d_model=16 --config.model.ffn_dim=32 --config.model.heads=2 --config.model.encoder_layers=1
    --config.model.decoder_layers=1 --config.train.steps=6 --config.train.checkpoint_every=2 --config.train.eval_every=6
    --config.train.eval_sentences=4 --config.train.log_every=2 --config.optimizer.warmup_steps=2
""".split()


def blocks(language=""):
    """The code blocks of one language."""
    # Every block is read, so that the end of one is not taken for the beginning of the next.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands():
    """Every `python -m ...` line of the README's code blocks."""
    return [line for block in blocks() for line in block.splitlines() if line.startswith("python -m janus_jax.")]


# What pretraining asks for beside it: short blocks, and a validation split of a small corpus.
TINY_TEXT = "--config.data.max_source_length=64 --config.data.max_target_length=64 --config.data.hold_out=20".split()


def write_bart(folder, lines):
    """A random BART of the reduced size, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = text.train(lines, TextConfig(model_type="byte_bpe", vocab_size=300))
    sizes = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    config = transformers.BartConfig(vocab_size=tokenizer.vocab_size, d_model=16, **both)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A directory with my/train.de and the other files that the README speaks of."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("my", "corpus"):
        (folder / name).mkdir()
    pairs = dict(zip(("train", "valid", "test"), demo.generate("de", "en", (200, 12, 8), 0), strict=True))
    for name, file in (("train", "train"), ("valid", "dev"), ("test", "test")):
        (folder / "my" / f"{file}.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs[name]))
        for side, lang in enumerate(("de", "en")):
            (folder / "my" / f"{file}.{lang}").write_text("".join(f"{pair[side]}\n" for pair in pairs[name]))
    english = [pair[1] for pair in pairs["train"]]
    (folder / "corpus/a.txt").write_text("".join(f"{'. '.join(english[i : i + 4])}.\n" for i in range(0, 200, 2)))
    (folder / "input.de").write_text("Montag\n\n3 Stunden\n")
    (folder / "gaps.tsv").write_text("Montag\t<mask>\n\t\n3 Stunden\t3 <mask><mask>\n")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_bart(folder / "bart-base", english)
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(folder / "modules"))
        yield folder
    os.chdir(before)


def run(line, monkeypatch):
    """Runs one command of the README in this process, redirections included."""
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    module, rest = words[2], words[3:]
    arguments, files = [], {}
    while rest:
        word = rest.pop(0)
        if word in ("<", ">"):
            files[word] = rest.pop(0)
        else:
            arguments.append(word)
    if any(word.startswith("--config=") for word in arguments):
        arguments += TINY + (TINY_TEXT if "bart_janus" in line else [])
    with open(files.get("<", os.devnull)) as source, open(files.get(">", os.devnull), "w") as sink:
        monkeypatch.setattr(sys, "stdin", source)
        monkeypatch.setattr(sys, "stdout", sink)
        status = importlib.import_module(f"{module}.__main__").main(arguments)
    return status, files.get(">")


def test_the_commands_run_one_after_another(desk, monkeypatch):
    lines = commands()
    assert {line.split()[2].removeprefix("janus_jax.") for line in lines} == {
        "data",
        "train",
        "decode",
        "evaluate",
        "convert",
    }
    for line in lines:
        status, output = run(line, monkeypatch)
        assert status == 0, line
        if output:
            assert (desk / output).read_bytes().count(b"\n") == 3, f"{line}: three lines went in"
            # What is scored next must have as many lines as its references.
            (desk / output).write_text((desk / "my/test.en").read_text())
    assert (desk / "runs/mine/average").is_dir()


def test_the_python_examples_run(desk, capsys):
    ours, transformers, ctranslate2 = blocks("python")
    exec(compile(ours, "README.md", "exec"), {})
    assert re.search(r"-?\d+\.\d+$", capsys.readouterr().out.strip())
    for module, example in (("transformers", transformers), ("ctranslate2", ctranslate2)):
        pytest.importorskip(module)
        exec(compile(example, "README.md", "exec"), {})
        # What so small a model says after six steps may well be spaces.
        assert len(capsys.readouterr().out.removesuffix("\n")) > 0


def test_scripts_and_files_that_it_names_exist():
    for script in set(re.findall(r"\./(launch/\w+\.sh)", README)):
        assert os.access(ROOT / script, os.X_OK), script
    names = re.findall(r"`((?:configs|tests|janus_jax|notebooks|benchmarks)/[\w./]+)`", README)
    names += re.findall(r"\]\(((?!http)[\w./]+)\)", README)
    names += [
        f"configs/{name}" for name in re.findall(r"`(\w+\.py)[:`]", README) if not (ROOT / "janus_jax" / name).exists()
    ]
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists(), name


def test_its_tree_is_the_tree():
    (tree,) = re.findall(r"^    janus_jax/\n(.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    shown = {
        name.rstrip("/") for line in tree.splitlines() for name in re.findall(r"(?:^ +|\s{2,})([\w]+(?:\.py|/))", line)
    }
    package = {p.name for p in (ROOT / "janus_jax").iterdir() if p.name not in ("__init__.py", "__pycache__")}
    top = {"configs", "launch", "notebooks", "benchmarks", "tests"}
    assert package <= shown, package - shown
    assert top <= shown, top - shown
    assert shown <= package | top, shown - package - top


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"[A-Z]+_[A-Z]+(?:_[A-Z]+)*(?:_SECTION|_TABLE|_TIME|_SAMPLES)|TODO|TBD", README)
    assert not re.findall(r"\b[A-Z]{4,}_[A-Z]{4,}\b", README)
