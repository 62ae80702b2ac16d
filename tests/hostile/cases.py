"""Cases of bad input, made at random: each has a command line, the files that it reads, and what its error has to name."""

import dataclasses
import gzip
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_jax import config as config_lib
from janus_jax.config import Config
from janus_jax.decode.__main__ import _flags
from tests.hostile import desk

NUMBERS = (
    "0", "-1", "-0.5", "nan", "inf", "-inf", "1e30", "1e-320", "2147483647", "2147483648", "-2147483649", "3000000000",
    "18446744073709551615", "99999999999999999999", "1.5", "007", "0x10", "1_000", " 3 ", "3,5", "١٢",
)  # fmt: skip
WORDS = (
    "", " ", "true", "False", "None", "null", "[]", "()", "(1,", "(16, 8)", "((0, 1.0),)", "{}", "a b", "é", "\u202e", "'", '"',
    "../x", "/missing/x", "fixed", "fixed/in.txt", "-", "--", "=", "x=y", "%s", "$(x)", "a" * 5000, "__class__",
)  # fmt: skip
VALUES = NUMBERS + WORDS


@dataclasses.dataclass
class Case:
    """One command line.

    Attributes:
      command: `decode`, `evaluate`, `data`, `train` or `convert`.
      argv: its arguments; paths are relative to the desk.
      places: an error has to hold one of these.
      output: the file or folder that must exist after success; "": none.
      lines: number of lines of `output` after success; None: any; -1: success is a fault.
      work: folder of the case, the only place where it may write.
    """

    command: str
    argv: list[str]
    places: tuple[str, ...]
    output: str = ""
    lines: int | None = None
    work: str = ""


class Maker:
    """Makes cases in the folder `work` of a desk, which is the current directory."""

    def __init__(self, rng: random.Random, work: Path):
        self.rng, self.work = rng, work

    def case(self) -> Case:
        make = self.rng.choice(
            [
                self.decode_flag, self.decode_unknown_flag, self.decode_lines, self.decode_objects, self.decode_output,
                self.decode_checkpoint, self.evaluate_files, self.evaluate_setting, self.evaluate_pairs, self.evaluate_predictions, self.evaluate_traces, self.setting,
                self.setting, self.setting, self.two_settings, self.experiment, self.prepared, self.text_files, self.convert_flag,
                self.convert_import, self.convert_weights,
            ]
        )  # fmt: skip
        return dataclasses.replace(make(), work=str(self.work))

    # decode

    def _decode(self, argv: Sequence[str], places: tuple[str, ...], lines: int | None = desk.LINES) -> Case:
        output = f"{self.work}/out.txt"
        defaults = {"--checkpoint": "fixed/run", "--input": "fixed/in.txt", "--output": output}
        given = {arg.split("=")[0] for arg in argv}
        rest = [f"{name}={value}" for name, value in defaults.items() if name not in given]
        return Case("decode", [*rest, *argv], places, output if "--output" not in given else "", lines)

    def _mode(self) -> str:
        return f"--mode={self.rng.choice(('ar', 'nar', 'ctc', 'speculative'))}"

    def decode_flag(self) -> Case:
        name = self.rng.choice([*_flags(), "devices", "format", "trace", "scores"])
        value = self.rng.choice(VALUES)
        if name == "trace" and not value.startswith("/missing"):
            value = f"{self.work}/trace.jsonl" if value else value
        several = name == "nbest" and value.strip().isdigit()
        return self._decode([self._mode(), f"--{name}={value}"], (name,), None if several else desk.LINES)

    def decode_unknown_flag(self) -> Case:
        name = self.rng.choice(list(_flags()))
        at = self.rng.randrange(len(name))
        typed = self.rng.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name + "s", name.upper()])
        return self._decode([self._mode(), f"--{typed}=1"], (typed, name))

    def decode_lines(self) -> Case:
        content, path = self._bytes(), f"{self.work}/in.txt"
        Path(path).write_bytes(content)
        form = self.rng.choice(("lines", "tsv"))
        count = content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
        if content.startswith((b"\xff\xfe", b"\x1f\x8b")):  # UTF-16 and gzip are no lines
            count = -1
        return self._decode([self._mode(), f"--input={path}", f"--format={form}"], (path,), count)

    def _bytes(self) -> bytes:
        good = Path("fixed/in.txt").read_bytes()
        at = self.rng.randrange(len(good))
        return self.rng.choice(
            [
                b"", b"\n", b"\n\n\n", b"\0", self.rng.randbytes(300), good[:at], good[:at] + b"\xff\xfe" + good[at:],
                good.replace(b"\n", b"\r\n"), good.replace(b"\n", b"\r"), b"\xef\xbb\xbf" + good, "\u2028\x85\x0c".encode() + good,
                b"a " * 3000 + b"\n", b"\t\t\n" + good, good.replace(b" ", b"\t"), b"<mask> </s> <s> <pad>\n", good.decode().encode("utf-16"),
                gzip.compress(good),
            ]
        )  # fmt: skip

    def _spoil(self, path: Path, ways: Sequence[str]) -> None:
        """Does one of these to a file of lines."""
        match self.rng.choice(ways):
            case "bytes":
                path.write_bytes(self._bytes())
            case "missing":
                path.unlink()
            case "folder":
                path.unlink()
                path.mkdir()
            case "lines":
                path.write_bytes(path.read_bytes() + b"one more line\n")

    def decode_objects(self) -> Case:
        lines = Path("fixed/in.jsonl").read_text().splitlines()
        bad = self.rng.choice(
            [
                "", "{", "[" * 100_000, '{"a":' * 50_000, "null", "3", '"x"', "[]", "{}", '{"source": 3}', '{"source": null}',
                '{"source": ["a"]}', '{"source": "\\ud800", "target": "<mask>"}', '{"source": "a", "target": 3}',
                '{"source": "a", "target": "\\udfff <mask>"}', '{"source": "a"}', '{"source": "a", "source": "b", "target": ""}',
                '{"source": NaN}', '{"source": "a", "target": "' + "<mask>" * 300 + '"}', '{"source": "a", "infill": [[1]], "target": ""}',
                '{"source": "a", "infill": "x", "target": "<mask>"}', "\0", '{"source": "a", "target": "x", "score": 1' + "0" * 5000 + "}",
            ]
        )  # fmt: skip
        lines[self.rng.randrange(len(lines))] = bad
        path = f"{self.work}/in.jsonl"
        Path(path).write_bytes("".join(f"{line}\n" for line in lines).encode())
        mode = self.rng.choice(("infill", "nar", "ar"))
        return self._decode([f"--mode={mode}", f"--input={path}", "--format=jsonl"], (path, "line ", "target"))

    def decode_output(self) -> Case:
        flag = self.rng.choice(("output", "trace"))
        folder, file = f"{self.work}/folder", f"{self.work}/file"
        Path(folder).mkdir()
        Path(file).write_text("before\n")
        path = self.rng.choice(
            [folder, f"{folder}/", f"{self.work}/missing/x", f"{file}/x", "", f"{self.work}/{'n' * 300}"]
        )
        argv = [f"--{flag}={path}", "--mode=nar" if flag == "trace" else self._mode()]
        return self._decode(argv, (path or flag, flag), None)

    def decode_checkpoint(self) -> Case:
        path = self._damaged("fixed/run")
        return self._decode([f"--checkpoint={path}", self._mode()], (path, "checkpoint"))

    def _damaged(self, source: str) -> str:
        """A copy of a folder with one damaged file."""
        copy = Path(self.work) / "copy"
        shutil.copytree(source, copy)
        path = self.rng.choice([p for p in sorted(copy.rglob("*")) if p.is_file()])
        data = path.read_bytes()
        match self.rng.choice(("empty", "cut", "flip", "remove", "folder", "text", "long")):
            case "empty":
                path.write_bytes(b"")
            case "cut":
                path.write_bytes(data[: self.rng.randrange(len(data) + 1)])
            case "flip" if data:
                at = self.rng.randrange(len(data))
                path.write_bytes(data[:at] + bytes([data[at] ^ (1 << self.rng.randrange(8))]) + data[at + 1 :])
            case "remove":
                path.unlink()
            case "folder":
                path.unlink()
                path.mkdir()
            case "text":
                path.write_bytes(self.rng.choice((b"{}", b"null", b"[]", b"\xff\xff", b"0")))
            case "long":
                path.write_bytes(data + self.rng.randbytes(100))
        return str(copy)

    # evaluate

    def evaluate_files(self) -> Case:
        path = f"{self.work}/text"
        if self.rng.random() < 0.8:
            Path(path).write_bytes(self._bytes())
        else:
            path = self.rng.choice(("fixed", "/missing/x", "", "fixed/prepared/missing"))
        names = ["hypotheses", "references"]
        self.rng.shuffle(names)
        return Case("evaluate", [f"--{names[0]}={path}", f"--{names[1]}=fixed/in.txt"], (path, names[0], "references"))

    def evaluate_pairs(self) -> Case:
        path = f"{self.work}/pairs.tsv"
        if self.rng.random() < 0.8:
            Path(path).write_bytes(self._bytes())
        else:
            path = self.rng.choice(("fixed", "/missing/x", "fixed/prepared/missing"))
        argv = ["--checkpoint=fixed/run", f"--pairs={path}", "--setting=ar:beam=1"]
        return Case("evaluate", argv, (path, "--pairs", "references"))

    def evaluate_predictions(self) -> Case:
        folder, benchmark = Path(self.work, "out"), Path(self.work, "easy/xsum_data/org_data")
        files = [benchmark / "dev.src", benchmark / "dev.tgt", folder / "xsum.easy.dev"]
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy("fixed/in.txt", path)
        self._spoil(self.rng.choice(files), ("bytes", "bytes", "bytes", "missing", "folder"))
        argv = [f"--glge={self.work}/easy", f"--predictions={folder}"]
        return Case("evaluate", argv, (str(benchmark), str(folder), "references"))

    def evaluate_setting(self) -> Case:
        name, value = self.rng.choice(list(_flags())), self.rng.choice(VALUES)
        mode = self.rng.choice(("ar", "nar", "ctc", "dag", "x", ""))
        setting = self.rng.choice((f"{mode}:{name}={value}", f"{mode}:{name}", f"{mode}{value}", value))
        argv = ["--checkpoint=fixed/run", "--source=fixed/dev.de", "--references=fixed/dev.en", f"--setting={setting}"]
        return Case("evaluate", argv, ("setting", name, *(f"error: {flag}: " for flag in _flags())))

    def evaluate_traces(self) -> Case:
        path, page = f"{self.work}/trace.jsonl", f"{self.work}/page.html"
        good = json.loads(Path("fixed/trace.jsonl").read_text())
        good[self.rng.choice(list(good))] = self.rng.choice(
            (None, 3, float("nan"), [], {}, "<!--<script>", "\ud800", [[]], -1)
        )
        content = self.rng.choice((json.dumps(good).encode(), self._bytes(), b"[" * 100_000))
        Path(path).write_bytes(content)
        return Case("evaluate", [f"--traces={path}", f"--trace_html={page}"], (path,), page)

    # data and train

    def _experiment(self, command: str, argv: Sequence[str], places: tuple[str, ...]) -> Case:
        given = {arg.split("=")[0] for arg in argv}
        defaults = {"--config": "fixed/mine.py"}
        defaults |= {"--workdir": f"{self.work}/run"} if command == "train" else {}
        if command == "data":
            defaults["--config.data.prepared"] = f"{self.work}/prepared"
        rest = [f"{name}={value}" for name, value in defaults.items() if name not in given]
        output = f"{self.work}/prepared" if command == "data" and "--config.data.prepared" not in given else ""
        return Case(command, [*rest, *argv], places, output)

    def _value_of(self, value: Any) -> str:
        if isinstance(value, bool):
            return self.rng.choice(("2", "yes", "", "None", "1.0"))
        if isinstance(value, (int, float)):
            return self.rng.choice((*NUMBERS, *WORDS[:12]))
        return self.rng.choice(VALUES)

    def setting(self) -> Case:
        name, value = self.rng.choice([leaf for leaf in config_lib.leaves(Config()) if _is_safe(leaf[0])])
        command = self.rng.choice(("data", "train", "train"))
        return self._experiment(command, [f"--config.{name}={self._value_of(value)}"], ("config.", name))

    def two_settings(self) -> Case:
        two = self.rng.sample([leaf for leaf in config_lib.leaves(Config()) if _is_safe(leaf[0])], 2)
        argv = [f"--config.{name}={self._value_of(value)}" for name, value in two]
        return self._experiment("train", argv, ("config.", two[0][0], two[1][0]))

    def experiment(self) -> Case:
        path = f"{self.work}/experiment.py"
        good = Path("fixed/mine.py").read_text()
        content = self.rng.choice(
            [
                "", "get_config = 3\n", "def get_config(:\n", "def get_config():\n    return 3\n", "def get_config():\n    return {}\n",
                "def get_config():\n    return None\n", "def get_config():\n    raise ValueError('no')\n", "import missing_module\n",
                "def get_config():\n    1 / 0\n", good.replace("return config", "config.model.x = 1\n    return config"),
                good.replace("return config", "config.model = 3\n    return config"), good.replace("def get_config()", "def get_config(a, b)"),
                good.replace("return config", "config.data.buckets = 'x'\n    return config"), "\0", "\xff",
                good.replace("return config", "config.train.steps = [1]\n    return config"), "raise SystemExit(0)\n",
                good.replace("return config", "config.objective.weights.ar = ((0,),)\n    return config"),
                good.replace("return config", "config.objective.weights.ar = (('a', 'b'),)\n    return config"),
            ]
        )  # fmt: skip
        Path(path).write_text(content, encoding="latin-1")
        preset = self.rng.choice(("", "", "", ":x", ":"))
        return self._experiment(self.rng.choice(("data", "train")), [f"--config={path}{preset}"], (path, "config."))

    def prepared(self) -> Case:
        path = self._damaged("fixed/prepared")
        return self._experiment("train", [f"--config.data.prepared={path}"], (path, "config."))

    def text_files(self) -> Case:
        for language in ("de", "en"):
            shutil.copy(f"fixed/train.{language}", f"{self.work}/train.{language}")
        path = Path(self.work) / f"train.{self.rng.choice(('de', 'en'))}"
        self._spoil(path, ("bytes", "bytes", "bytes", "missing", "folder", "lines"))
        return self._experiment("data", [f"--config.data.train={self.work}/train"], (str(self.work), "config."))

    # convert

    def convert_flag(self) -> Case:
        output = f"{self.work}/converted"
        value, card = self.rng.choice(VALUES), self.rng.choice(("license", "scores", "datasets", "repo_id"))
        flag, argv = self.rng.choice(
            [
                (card, ["export", "--checkpoint=fixed/run", "--format=hf", f"--{card}={value}"]),
                ("last", ["average", "--checkpoint=fixed/run", f"--last={value}"]),
                ("checkpoint", ["average", f"--checkpoint={value}", "--last=1"]),
                ("checkpoint", ["export", f"--checkpoint={value}", "--format=safetensors"]),
                ("format", ["export", "--checkpoint=fixed/run", f"--format={value}"]),
                ("model", ["import", "--from=hf", f"--model={value}"]),
                ("from", ["import", f"--from={value}", "--model=fixed/export"]),
                ("heads", ["import", "--from=hf", "--model=fixed/export", f"--heads={value}"]),
                ("max_positions", ["import", "--from=hf", "--model=fixed/export", f"--max_positions={value}"]),
                ("tokenizer", ["import", "--from=hf", "--model=fixed/export", f"--tokenizer={value}"]),
                ("ignore", ["import", "--from=hf", "--model=fixed/export", f"--ignore={self.rng.choice(('(', '*', '[', value))}"]),
                ("output", ["average", "--checkpoint=fixed/run", "--last=1", "--output=fixed/run"]),
            ]
        )  # fmt: skip
        if flag == "output":
            return Case("convert", argv, ("fixed/run",))
        places = (flag, "command", value or flag, "checkpoint", "fixed/export")
        return Case("convert", [*argv, f"--output={output}"], places, output)

    def convert_import(self) -> Case:
        model = self._export()
        path = model / "config.json"
        settings = json.loads(path.read_text())
        key = self.rng.choice(list(settings))
        settings[key] = self.rng.choice((None, [], {}, "x", -1, 0, 1.5, 10**12, True, float("nan"), "\ud800", [1, 2]))
        path.write_text(json.dumps(settings))
        return self._import(model, ("config.json", key))

    def convert_weights(self) -> Case:
        model = self._export()
        shutil.rmtree(model)
        return self._import(Path(self._damaged("fixed/export")), (str(self.work), "copy"))

    def _export(self) -> Path:
        return Path(shutil.copytree("fixed/export", Path(self.work) / "model"))

    def _import(self, model: Path, places: tuple[str, ...]) -> Case:
        output = f"{self.work}/imported"
        return Case("convert", ["import", "--from=hf", f"--model={model}", f"--output={output}"], places, output)


def _is_safe(name: str) -> bool:
    """Whether any value of a setting may be tried: no path that could lead out of the desk."""
    return name not in ("data.prepared", "data.tfds_data_dir")
