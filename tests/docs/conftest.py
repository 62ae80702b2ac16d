"""The directory in which the commands of the pages run: texts, a random BART, and two trained tiny models."""

import os
import shutil

import filelock
import pytest

from janus_jax import text
from janus_jax.config import DataConfig, TextConfig
from janus_jax.convert.hf_tokenizer import tokenizer_files
from janus_jax.data.sample import write_sample
from tests.docs import commands
from tests.docs.pages import ROOT
from tests.train import runs


@pytest.fixture(autouse=True, scope="package")
def _hurry():
    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        yield


@pytest.fixture(scope="session")
def bare_desk(tmp_path_factory):
    """A directory with my/train.es and the other texts of the pages, and the configs of the checkout."""
    folder = tmp_path_factory.mktemp("bare_desk")
    texts = {
        "my": ("es", ("train", "dev", "test")),
        "data/multi30k": ("de", ("train", "val", "test_2016_flickr")),
        "data/iwslt14": ("de", ("train", "valid", "test")),
    }
    for place, (lang, names) in texts.items():
        for source in ("parallel", "tsv") if place == "my" else ("parallel",):
            ending = ".tsv" if source == "tsv" else ""
            train, valid, test = (f"{folder}/{place}/{name}{ending}" for name in names)
            config = DataConfig(
                source=source, source_lang=lang, demo_sizes=(200, 12, 8), train=train, valid=valid, test=test
            )
            write_sample(config)
    glge = folder / "data/glge/easy/xsum_data/org_data"
    glge.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        for lang, ending in (("es", "src"), ("en", "tgt")):
            if (name, lang) != ("test", "en"):  # not public
                shutil.copy(folder / f"my/{name}.{lang}", glge / f"{name}.{ending}")
    shutil.copy(folder / "my/test.en", folder / "output.en")
    shutil.copy(folder / "data/iwslt14/test.en", folder / "data/iwslt14/test.plain.en")
    (folder / "corpus").mkdir()
    english = (folder / "my/train.en").read_text().splitlines()
    (folder / "corpus/a.txt").write_text("".join(f"{'. '.join(english[i : i + 4])}.\n" for i in range(0, 200, 2)))
    (folder / "input.es").write_text("lunes\n\n3 horas\n")
    (folder / "gaps.tsv").write_text("lunes\t<mask>\n\t\n3 horas\t3 <mask><mask>\n")
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def trained_desk(bare_desk, tmp_path_factory):
    """The desk after the shared commands: prepared data, and the runs `mine` and `mine_masks`.

    The first worker of a parallel run that needs it makes it; the others wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with filelock.FileLock(base / "trained_desk.lock"):
        if (base / "trained_desk").exists():
            return base / "trained_desk"
        folder = shutil.copytree(bare_desk, base / "unfinished_desk", dirs_exist_ok=True)
        before = os.getcwd()
        os.chdir(folder)
        try:
            with pytest.MonkeyPatch.context() as patch:
                commands.run_sections(commands.SHARED, folder, patch)
        finally:
            os.chdir(before)
        return folder.rename(base / "trained_desk")


def _entered(folder, monkeypatch):
    """Makes a directory the current one for a test."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder / "modules"))
    return folder


@pytest.fixture
def desk(trained_desk, tmp_path, monkeypatch):
    """A copy of the trained desk, as the current directory."""
    return _entered(shutil.copytree(trained_desk, tmp_path / "desk"), monkeypatch)


@pytest.fixture
def bart_desk(bare_desk, tmp_path, monkeypatch):
    """A copy of the bare desk with `bart-base`, a random BART of the tiny size, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(bare_desk, tmp_path / "desk")
    lines = (folder / "my/train.en").read_text().splitlines()
    tokenizer = text.train(lines, TextConfig(model_type="byte_bpe", vocab_size=300))
    sizes = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    config = transformers.BartConfig(vocab_size=tokenizer.vocab_size, d_model=16, **both)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder / "bart-base")
    for name, content in tokenizer_files(tokenizer).items():
        (folder / "bart-base" / name).write_text(content, encoding="utf-8")
    return _entered(folder, monkeypatch)
