"""The model card of an hf export: the Hub's library reads it, its code runs with transformers and torch alone, and the
directory can be uploaded as it is."""

import base64
import dataclasses
import http.server
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from janus_jax import checkpoint
from janus_jax import config as config_lib
from janus_jax.config import NarDecode, resolve
from janus_jax.convert import CardOptions, ConvertError, ImportRequest, card, errors, export_model, import_model
from janus_jax.convert.__main__ import main
from janus_jax.convert.card import PACKAGES
from janus_jax.text import train
from tests.convert import foreign

pytest.importorskip("torch")
huggingface_hub = pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"max_source_length": 18, "max_target_length": 24}
ORIGIN = {
    "data": "0123456789ab", "revision": "f" * 40, "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8"},
}  # fmt: skip
# As a run writes them; the evaluation of another step is not the checkpoint's.
RECORDS = [
    {"step": 6, "valid/loss": 2.0, "valid/bleu_ar": 12.0},
    {"step": 12, "loss/total": 1.5, "grad_norm": 3.0},
    {"step": 12, "valid/loss": 1.25, "valid/loss/ar": 0.5, "valid/nll/ar": 0.75, "valid/bleu_ar": 33.123456789, "valid/bleu_ctc": 30.5},
]  # fmt: skip


@pytest.fixture(scope="module")
def run(bpe, tmp_path_factory):
    """The work directory of a run whose random model has all ways of generating but DAG."""
    run = tmp_path_factory.mktemp("card") / "run"
    weights = {"heads": 1.0}
    config = {"objective": {"name": "janus_all", "weights": weights}, "data": LENGTHS}
    rows = {"ctc_ratio": 2.0, "draft_heads": 2, "draft_vocab": 30}
    foreign.write_checkpoint(run / "checkpoints/12", bpe, config=config, about=ORIGIN, **rows)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    return run


@pytest.fixture(scope="module")
def rows(run):
    """Scores as `python -m janus_jax.evaluate --json` prints them."""
    common = {"length_ratio": 0.9, "bleu_signature": "x", "sentences_per_second": 3.0, "lines": 8}
    common["model"] = checkpoint.checksum(run)
    return [
        {"setting": "ar:beam=5", "bleu": 41.23456789, "chrf": 60.5, "exact_match": 0.25, "coqa/f1": None, **common},
        {
            "setting": "nar:passes=4",
            "bleu": 39.0,
            "chrf": float("nan"),
            "exact_match": 0.125,
            "coqa/f1": 7.5,
            "token_error_rate": 12.5,
            "sequence_error_rate": 87.5,
            **common,
        },
    ]


@pytest.fixture(scope="module")
def exports(run, rows, tmp_path_factory):
    """A directory with the exports `me/all`, with everything that the user can say, and `plain`, a DAG model with a tokenizer of
    SentencePiece, of which nothing is said."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "newstest.json").write_text(json.dumps(rows))
    said = ["--license=cc-by-4.0", f"--scores={folder / 'newstest.json'}", "--datasets=a/b,c", "--repo_id=me/all"]
    assert main(["export", f"--checkpoint={run}", "--format=hf", f"--output={folder / 'me/all'}", *said]) == 0
    text = {"vocab_size": 90, "byte_fallback": False, "model_type": "unigram"}
    tokenizer = train(foreign.LINES, resolve({"text": text}).text)
    config = {"objective": {"name": "janus_dag"}, "data": LENGTHS | {"source": "tsv"}}
    foreign.write_checkpoint(folder / "checkpoint", tokenizer, config=config, dag_ratio=2.0)
    export_model(folder / "checkpoint", "hf", folder / "plain")
    return folder


def card_of(directory):
    return huggingface_hub.ModelCard.load(directory / "README.md")


def test_the_hub_reads_the_metadata(exports, rows):
    data = card_of(exports / "me/all").data
    assert (data.language, data.license, data.datasets) == (["de", "en"], "cc-by-4.0", ["a/b", "c"])
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "translation", "all")
    results = {}
    for result in data.eval_results:
        assert result.task_type == "translation"
        results.setdefault(result.dataset_split, []).append((result.metric_type, result.metric_value))
    last, (first, second) = RECORDS[-1], rows
    assert results == {
        "validation": [
            ("loss", last["valid/loss"]), ("nll", last["valid/nll/ar"]), ("bleu", last["valid/bleu_ar"]), ("bleu", last["valid/bleu_ctc"]),
        ],
        "newstest": [
            ("bleu", first["bleu"]), ("chrf", first["chrf"]), ("exact_match", first["exact_match"]),
            ("bleu", second["bleu"]), ("exact_match", second["exact_match"]), ("f1", second["coqa/f1"]),
            ("token_error_rate", 12.5), ("sequence_error_rate", 87.5),
        ],
    }  # fmt: skip
    decodings = [result.metric_name for result in data.eval_results if result.metric_type == "bleu"]
    assert [re.search(r"\((.*)\)$", name)[1] for name in decodings] == [
        "ar:beam=1",
        "ctc:beam=1",
        "ar:beam=5",
        "nar:passes=4",
    ]


def test_what_is_not_known_is_left_out(exports):
    card = card_of(exports / "plain")
    assert card.data.to_dict().keys() == {
        "library_name",
        "pipeline_tag",
        "tags",
    }  # no license, language, data or scores
    assert card.data.pipeline_tag == "text-generation"
    assert "must choose one" in card.text
    assert "| data | tsv: the author's files |" in card.text
    assert card.text.count("not recorded") >= 4


def test_the_card_says_how_the_model_was_made(exports, run, tmp_path):
    text = card_of(exports / "me/all").text
    loaded = checkpoint.load(run)
    for fact in (
        "| data | demo: built-in corpus, de to en |",
        ORIGIN["data"],
        ORIGIN["revision"],
        "jax 0.10.2",
        "train.seed 0",
        "| 12 |",
        config_lib.config_hash(loaded.config),
    ):
        assert fact in text
    settings = dict(line.split(" = ") for line in text.split("```text\n")[1].split("```")[0].splitlines())
    defaults = dict(config_lib.leaves(config_lib.Config()))
    changed = {name: repr(value) for name, value in config_lib.leaves(loaded.config) if value != defaults[name]}
    assert settings == changed
    # Settings of an import describe no training.
    import_model(ImportRequest("hf", exports / "me/all", tmp_path / "back"))
    export_model(tmp_path / "back", "hf", tmp_path / "again")
    again = card_of(tmp_path / "again")
    assert again.data.language is again.data.eval_results is None
    assert "imported from all" in again.text
    assert "train.seed" not in again.text


def test_scores_of_the_quickstart(run, rows, tmp_path):
    loaded = checkpoint.load(run)
    figures = {"step": 12, "config_hash": config_lib.config_hash(loaded.config), "rows": rows, "sources": ["a"]}
    (tmp_path / "quickstart.json").write_text(json.dumps(figures))
    export_model(run, "hf", tmp_path / "out", CardOptions(scores=tmp_path / "quickstart.json"))
    results = [result for result in card_of(tmp_path / "out").data.eval_results if result.dataset_split == "test"]
    assert [result.metric_value for result in results if result.metric_type == "bleu"] == [row["bleu"] for row in rows]
    (tmp_path / "quickstart.json").write_text(json.dumps(figures | {"step": 11}))
    with pytest.raises(ConvertError, match="of another model"):
        export_model(run, "hf", tmp_path / "other", CardOptions(scores=tmp_path / "quickstart.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--license=Apache-2"], "--license='Apache-2': .* did you mean apache-2.0?"),
        (["--repo_id=a/b/c"], "--repo_id: 'a/b/c' is no name"),
        (["--datasets=a,"], "--datasets: '' is no name"),
        (["--datasets=a, b"], "--datasets: ' b' is no name"),
        (["--license=mit", "--format=safetensors"], "--format=safetensors: has no model card"),
        (["--scores=none.json"], "none.json: cannot be read"),
        (["--scores=text.json"], "text.json: not JSON"),
        (["--scores=file.json"], "file.json: not the scores of a checkpoint"),
        (["--scores=kind.json"], "kind.json: not the scores of a checkpoint"),
        (["--scores=other.json"], "other.json: the scores of another model"),
        (["--scores=before.json"], "before.json: the scores of another model"),
    ],
)
def test_what_the_hub_would_refuse_writes_nothing(flags, message, run, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = [{name: value for name, value in row.items() if name != "model"} for row in rows]  # of an older version
    contents = {
        "file": rows[0],
        "kind": [rows[0] | {"setting": 1}],
        "other": [*rows, rows[0] | {"model": 1}],
        "before": before,
    }
    for name, content in contents.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    Path("text.json").write_text("bleu: 3")
    assert main(["export", f"--checkpoint={run}", "--format=hf", "--output=out", *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A directory of packages: transformers, torch and what they require, and no other."""
    folder, names, known = tmp_path_factory.mktemp("bare"), ["transformers", "torch"], set()
    while names:
        name = names.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # required on other systems
            continue
        if distribution.name in known:
            continue
        known.add(distribution.name)
        required = map(Requirement, distribution.requires or [])
        names += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


@pytest.mark.slow
def test_the_code_runs_with_transformers_and_torch_alone(exports, bare, tmp_path):
    blocks = {name: python_blocks(exports / name) for name in ("me/all", "plain")}
    assert [len(one) for one in blocks.values()] == [5, 3]
    script = """
import contextlib, importlib.util, io, json, sys
absent = ("jax", "flax", "janus_jax", "sentencepiece", "google", "accelerate", "tensorflow_datasets", "pytest")
assert not [name for name in absent if importlib.util.find_spec(name)]
outputs = {}
for name, blocks in json.loads(sys.stdin.read()).items():
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, name, "exec"), {})
        outputs.setdefault(name, []).append(printed.getvalue())
print(json.dumps(outputs))
"""
    environment = {"PYTHONPATH": str(bare), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", script],
        input=json.dumps(blocks), cwd=exports, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout.splitlines()[-1])
    for name, texts in outputs.items():
        assert [text[:1] + text[-2:] for text in texts] == ["[]\n"] * len(blocks[name])
    greedy, _, _, _, drafted = outputs["me/all"]
    assert drafted == greedy != "['']\n"


def python_blocks(directory):
    return re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_card_names_the_tested_versions():
    pinned = (ROOT / "requirements-convert.txt").read_text(encoding="utf-8")
    for package in PACKAGES:
        assert f"{package} " in pinned


@pytest.fixture
def hub():
    """A server that answers an upload as the Hub does: its address, and the card and the files that it was sent."""
    received = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body, answer = self.rfile.read(int(self.headers["Content-Length"])), {}
            if self.path == "/api/validate-yaml":
                received["card"] = json.loads(body)["content"]
            elif self.path == "/api/models/me/all/preupload/main":
                names = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            elif self.path == "/api/models/me/all/commit/main":
                entries = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
                received["files"] = {entry["path"]: base64.b64decode(entry["content"]) for entry in entries}
                answer = {"commitUrl": "https://huggingface.co/me/all/commit/1", "commitOid": "1", "success": True}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_the_directory_is_uploaded_as_it_is(exports, hub, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_DISABLE_XET", True
    )  # files in the commit, in place of a second store
    endpoint, received = hub
    directory = exports / "me/all"
    huggingface_hub.HfApi(endpoint=endpoint, token="hf_x").upload_folder(repo_id="me/all", folder_path=directory)
    assert received["card"] == (directory / "README.md").read_text(encoding="utf-8")
    assert received["files"] == {path.name: path.read_bytes() for path in directory.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_janus.py", "tokenizer.json"} < received[
        "files"
    ].keys()


# Libraries that are not installed


@pytest.fixture
def hide(monkeypatch):
    """A function: makes libraries look as if they were not installed."""

    def hide(*names):
        for name in names:
            for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
                monkeypatch.setitem(sys.modules, module, None)

    return hide


@pytest.mark.parametrize("installed", [False, True])
def test_all_missing_libraries_are_named_before_any_work(installed, hide, tmp_path, monkeypatch, capsys):
    hide("safetensors", "huggingface_hub")
    monkeypatch.chdir(ROOT)
    command = "pip install -r requirements-convert.txt"
    if installed:  # as a package, without a checkout
        monkeypatch.setattr(errors, "_LIST", tmp_path / "requirements-convert.txt")
        command = 'pip install "janus_jax[convert]"'
    argv = ["export", f"--checkpoint={tmp_path / 'no checkpoint'}", "--format=hf", f"--output={tmp_path / 'out'}"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "safetensors and huggingface_hub" in error
    assert error.endswith(f": {command}\n")
    assert error.count("\n") == 1


def test_formats_without_a_card_do_not_need_the_hubs_library(hide, run, tmp_path, capsys):
    hide("huggingface_hub")
    argv = ["export", f"--checkpoint={run}", "--format=safetensors", f"--output={tmp_path / 'out'}"]
    assert main(argv) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"sums": {"params": 1}}, "those of the last step"),
        ({"sums": {"params": 1, "ema": 2}}, "the moving average"),
        ({"sums": {"params": 1}, "of_steps": [2, 4]}, "steps 2, 4"),
    ],
)
def test_a_copy_says_the_same_of_its_weights(about, says, run):
    loaded = checkpoint.load(run)
    copy = checkpoint.origin(about) | {"sums": {"params": 3}}
    for one in (about, copy):
        loaded = dataclasses.replace(loaded, about=one)
        assert says in card._facts(loaded, loaded.config, 10, 100)["weights"]


def test_the_command_is_right_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = errors.install_command().removeprefix("pip install -r ")
    assert Path(path).is_absolute()
    assert Path(path).read_text() == (ROOT / "requirements-convert.txt").read_text()


def test_the_call_of_mask_predict_has_the_settings_of_the_checkpoint():
    assert card._nar_arguments(NarDecode()) == "passes=10, length_beam=3"
    changed = NarDecode(passes=4, length_beam=5, lengths="contiguous", revise=True, merge_repeats=True)
    expected = "passes=4, length_beam=5, lengths='contiguous', revise=True, merge_repeats=True"
    assert card._nar_arguments(changed) == expected


def test_no_call_of_draft_heads_where_they_cannot_draft():
    settings = {"objective": {"name": "ar", "weights": {"heads": 1.0}}, "model": {"draft_heads": 2}}
    for ar, drafts in (({}, True), ({"no_repeat_ngram": 3}, False), ({"sample": True}, False)):
        calls = card._calls(resolve(settings | {"decode": {"ar": ar}}))
        assert ("generate_speculative(**batch)" in [call for _, call in calls]) == drafts


def test_a_checkpoint_that_samples_is_exported_as_one(tmp_path, bpe):
    decode = {"ar": {"sample": True, "temperature": 0.7, "top_k": 5}}
    foreign.write_checkpoint(tmp_path / "run/checkpoints/2", bpe, config={"data": LENGTHS, "decode": decode})
    flags = [f"--checkpoint={tmp_path / 'run'}", "--format=hf", f"--output={tmp_path / 'export'}"]
    assert main(["export", *flags]) == 0
    stored = json.loads((tmp_path / "export/generation_config.json").read_text())
    assert (stored["do_sample"], stored["num_beams"], stored["temperature"], stored["top_k"]) == (True, 1, 0.7, 5)
    card = (tmp_path / "export/README.md").read_text()
    assert "generate(**batch, num_beams=1, do_sample=False)" in card
    assert "generate(**batch)" in card
