"""The test of each command of the pages, and helpers that run commands in this process at a tiny size."""

import argparse
import importlib
import os
import re
import shlex
import sys
from pathlib import Path

from janus_jax import command_line
from tests.docs.pages import ROOT, Block, section

# The commands of these sections run in this order before all chains. They train the two models of the other pages.
SHARED = (("own_data.md", "Two files"), ("training.md", "Objectives"))
# Chains do not depend on each other. Each chain has its own test file, so that chains run in parallel.
CHAINS: dict[str, tuple[tuple[str, str], ...]] = {
    "training": (
        ("own_data.md", "One TSV file"),
        ("own_data.md", "Without the checkout"),
        ("data.md", "Tokenizers"),
        ("data.md", "Distilled data"),
        ("training.md", "Training"),
        ("training.md", "Stop and resume"),
        ("training.md", "Look before you train"),
        ("training.md", "A CTC half for a finished AR model"),
        ("training.md", "Draft heads for a finished AR model"),
        ("speed.md", "Does speculation pay?"),
        ("training.md", "Average checkpoints"),
        ("scaling.md", "Sharding"),
    ),
    "experiments": (
        ("training.md", "Experiments"),
        ("recipes.md", "Real text on two CPU cores"),
        ("recipes.md", "The study: which objective, which recipe"),
        ("scaling.md", "Scaling on paper, checked by the compiler"),
        ("speed.md", "Data pipeline"),
        ("glge.md", "All tasks with one command"),
        ("glge.md", "Train and score a task"),
        ("reproduce.md", "The papers' translation tasks"),
        ("reproduce.md", "The downloads"),
        ("reproduce.md", "The two BLEU"),
    ),
    "decoding": (
        ("decoding.md", "Autoregressive: `--mode=ar`"),
        ("decoding.md", "Mask-predict: `--mode=nar`"),
        ("decoding.md", "Score"),
    ),
    "drafts": (
        ("decoding.md", "CTC: `--mode=ctc`"),
        ("decoding.md", "DAG: `--mode=dag`"),
        ("decoding.md", "Greedy search with drafts: `--mode=speculative`"),
        ("decoding.md", "Fill gaps: `--mode=infill`"),
        ("decoding.md", "From Python"),
    ),
    "g2p": (
        ("g2p.md", "Train"),
        ("g2p.md", "Pronounce words"),
        ("g2p.md", "Score"),
        ("g2p.md", "Compare the families"),
    ),
    "playground": (("playground.md", "Start it"), ("playground.md", "From programs")),
    "pytorch": (
        ("bart.md", "Import"),
        ("bart.md", "Fine-tune both halves"),
        ("bart.md", "Keep the AR half as it is"),
        ("bart.md", "Give it back"),
        ("bart.md", "What it costs"),
        ("pytorch.md", "Serve in PyTorch"),
        ("pytorch.md", "Share a model"),
    ),
    "pretraining": (
        ("pretraining.md", "Pretraining"),
        ("pretraining.md", "In small"),
        ("pretraining.md", "Does it help?"),
    ),
}

# Commands that no test runs unchanged: start of the command -> the reason, and what a test checks instead.
MINUTES = "takes minutes at the published size; its arguments are parsed"
NOT_RUN: dict[str, str] = {
    "./launch/quickstart.sh": "makes an environment and trains for minutes; tests/test_notebook.py runs its steps",
    "./launch/glge.sh": "trains for hours; tests/evaluate/test_submission.py runs it on a small folder",
    "./launch/reproduce.sh": "trains for days; tests/data/test_translation.py runs it on a small archive",
    "python -m janus_jax.data.translation": "needs the original downloads; tests/data/test_translation.py runs it on small ones",
    "python -m janus_jax.play": "serves until it is stopped; tests/play opens the page",
    "./launch/test.sh": "it runs the tests; its paths are checked",
    "pip wheel": "writes into the checkout; tests/test_wheel.py builds a wheel of a copy",
    "pip install": "needs a package registry; the file of requirements is checked",
    "python -m pytest": "runs other tests; its paths are checked",
    "python tests/golden_check.py": "tests/test_golden.py calls it with this file; the path is checked",
    "hf upload": "needs an account; tests/convert/test_card.py uploads such a directory to a server of its own",
    "mkdocs build": "tests/docs/test_site.py builds the site",
    "mkdocs serve": "waits for a browser; tests/docs/test_site.py builds the site",
    "python benchmarks/train_step.py": MINUTES,
    "python benchmarks/accelerator.py": "takes minutes; its parts are parsed in tests/test_accelerator.py; parsed",
    "python benchmarks/decode.py": MINUTES,
    "python benchmarks/bart.py": "takes minutes at the published size; tests/test_bart_benchmark.py runs a small one; parsed",
    "python benchmarks/scaling.py --max_devices": "compiles for an hour; tests/test_scaling.py checks the results; parsed",
    "tr A-Z a-z": "a program of the system; tests/docs/test_g2p_commands.py runs it before the chain",
    "python benchmarks/g2p.py --cell": "trains 8000 updates; tests/test_g2p_benchmark.py trains a small cell; parsed",
    "python benchmarks/transfer.py --pretrained": "trains for hours; tests/test_transfer_benchmark.py trains a small cell; parsed",
    "python benchmarks/study.py --cell": "trains 1200 updates; tests/test_study.py trains a small cell; parsed",
}
# The same for commands in sentences and tables.
INLINE_NOT_RUN: dict[str, str] = {
    "sbatch": "needs a SLURM cluster; tests/faults/test_processes.py checks the script",
    "kubectl": "needs a cluster; tests/faults/test_processes.py checks the file against the command's flags",
    "./launch/tpu_pod.sh": "needs a TPU slice; tests/faults/test_processes.py checks the command that it would send",
    "mpirun": "needs Open MPI; tests/faults/test_processes.py checks that its processes are detected",
    "./launch/local_processes.sh": "tests/faults/test_processes.py runs it with 2 and 4 processes",
    "python -m janus_jax.train": "names the command; its flags are in blocks, which run",
    "python -m janus_jax.decode": "names the command; its flags are in blocks, which run",
    "python -m janus_jax.describe": "writes a page of the checkout; tests/test_config.py compares it with the settings",
    "python -m benchmarks.draw_rows": "tests/test_draw_rows.py runs it",
    "ruff": "./launch/test.sh runs it",
    "janus-jax": "names the command; tests/test_commands.py tests it, and blocks have its flags",
    "pip install accelerate": "needs a package registry; tests/convert/test_fine_tuning.py runs Trainer",
    "pip install tensorflow": "needs a package registry, and only for some TFDS sets",
}

# Settings that make the experiments of the pages small, so that commands take seconds. One set of loss terms in all steps:
# each set is a program to compile (tests/train/test_train.py has runs of several sets).
TINY = """
    --config.text.vocab_size=150 --config.text.byte_fallback=False --config.text.character_coverage=1.0
    --config.data.buckets=1 --config.data.tokens_per_batch=1024
    --config.model.d_model=16 --config.model.ffn_dim=32 --config.model.heads=2 --config.model.encoder_layers=1
    --config.model.decoder_layers=1 --config.train.steps=6 --config.train.checkpoint_every=6 --config.train.eval_every=6
    --config.train.eval_sentences=0 --config.train.log_every=2 --config.optimizer.warmup_steps=2
    --config.objective.ar_every=1 --config.objective.ar_first=0
""".split()
# More flags for small runs: part of the command -> flags.
SMALLER: dict[str, list[str]] = {
    "configs/mine.py --workdir=runs/mine ": ["--config.train.checkpoint_every=2"],  # three checkpoints to average
    "configs/bart_janus.py": [
        "--config.data.max_source_length=64", "--config.data.max_target_length=64", "--config.data.hold_out=20",
    ],
    # A byte-level tokenizer has 256 tokens for the bytes.
    "configs/bart_tiny_entext.py": ["--config.text.vocab_size=300", "--config.data.hold_out=20"],
    "benchmarks/speculation.py": ["--sentences=2"],
    "benchmarks/data.py": ["--pairs=300", "--seconds=0.01"],
}  # fmt: skip
# Number of lines of `input.es` and `gaps.tsv` in the desk.
LINES = 3


class Parsed(Exception):
    """Ends a program after it has parsed its arguments."""


def not_run(command: str) -> str | None:
    """The reason why no test runs a command, or None if a test runs it."""
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


def run_chain(name: str, folder: Path, monkeypatch) -> list[str]:
    """Runs the sections of a chain in `folder`, the current directory; returns the commands that ran."""
    return run_sections(CHAINS[name], folder, monkeypatch)


def run_sections(sections, folder: Path, monkeypatch) -> list[str]:
    commands = []
    for page, title in sections:
        for block in section(page, title):
            if block.language == "python":
                run_python(block)
                continue
            for command in block.commands:
                if not_run(command):
                    check_without_running(command, monkeypatch)
                else:
                    run_command(command, folder, monkeypatch)
                    commands.append(command)
    return commands


def run_python(block: Block) -> None:
    """Runs a Python example."""
    exec(compile(block.text, f"{block.page}, {block.section}", "exec"), {})


def run_command(command: str, folder: Path, monkeypatch) -> None:
    """Runs one command in this process with its redirections; the exit status must be 0."""
    module, arguments, files = parts(command)
    small = [word for part, words in SMALLER.items() if part in f"{command} " for word in words]
    tiny = TINY if any(word.startswith("--config=") for word in arguments) else []
    with (
        open(files.get("<", os.devnull)) as source,
        open(files.get(">", os.devnull), "w") as sink,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", source)
        patch.setattr(sys, "stdout", sink)
        status = importlib.import_module(module).main([*arguments, *tiny, *small])
    assert status == 0, command
    if {"<", ">"} <= files.keys():
        output, text = ((folder / files[sign]).read_bytes() for sign in (">", "<"))
        assert output.count(b"\n") == text.count(b"\n") >= LINES, command


def parts(command: str) -> tuple[str, list[str], dict[str, str]]:
    """Module, arguments and redirections (sign -> file) of `python -m MODULE`, `python FILE` or `janus-jax`."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]  # a variable of the environment, as the number of devices, which the tests have set
    if words[0] == "janus-jax":
        words[:1] = ["python", "-m", "janus_jax.__main__"]
    assert words[0] == "python", f"{command}: not a command that a test can run; say why in NOT_RUN"
    if words[1] == "-m":
        module, rest = words[2], words[3:]
        if module.startswith("janus_jax.") and not module.endswith(".__main__"):
            module += ".__main__"
    else:
        module, rest = words[1].removesuffix(".py").replace("/", "."), words[2:]
    arguments, files = [], {}
    while rest:
        word = rest.pop(0)
        if word in ("<", ">"):
            files[word] = rest.pop(0)
        else:
            arguments.append(word)
    return module, arguments, files


def check_without_running(command: str, monkeypatch) -> None:
    """Checks a command of NOT_RUN: its paths exist, scripts are executable, the program accepts the arguments."""
    words = shlex.split(command)
    for word in words:
        if re.fullmatch(r"(\./)?(launch|tests|benchmarks|requirements)[\w./-]*", word):
            path = ROOT / word
            assert path.exists(), f"{command}: {word} does not exist"
            assert not word.startswith("./") or os.access(path, os.X_OK), f"{command}: {word} cannot be executed"
    if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        assert accepts(command, monkeypatch), f"{command}: the program rejects its arguments"


def _then_stop(parse):
    def parse_and_stop(*args):
        parse(*args)
        raise Parsed

    return parse_and_stop


def accepts(command: str, monkeypatch) -> bool:
    """Runs a program until it has parsed its arguments and settings; whether they are right."""
    module, arguments, _ = parts(command)
    with monkeypatch.context() as patch:
        for parser in (argparse.ArgumentParser, command_line.ArgumentParser):
            patch.setattr(parser, "parse_args", _then_stop(parser.parse_args))
        # Its last argument may read the run that the command starts from, which does not exist here.
        parse = command_line._parse
        patch.setattr(command_line, "_parse", lambda *args: _then_stop(parse)(*args[:4]))
        try:
            importlib.import_module(module).main(arguments)
        except Parsed:
            return True
        except SystemExit:
            pass
    return False  # also where the program has reported a mistake, or has ended without arguments
