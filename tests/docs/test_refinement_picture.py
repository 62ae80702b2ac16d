"""The picture of a refinement shows the content of the trace."""

import json
from xml.etree import ElementTree

import pytest

from benchmarks import draw_refinement
from tests.docs.pages import ROOT

RECORD = {
    "line": 2, "source": "zwei <Hunde>", "text": "two dogs", "score": -0.1,
    "passes": [
        {"tokens": ["▁two", "▁two"], "scores": [-0.1, -2.0], "remasked": [False, True]},
        {"tokens": ["▁two", "▁dogs"], "scores": [-0.1, -0.2], "remasked": [False, False]},
    ],
}  # fmt: skip


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    return path


def test_shows_tokens_changes_and_masks(trace, tmp_path):
    (tmp_path / "ar.jsonl").write_text('{}\n{"text": "two dogs", "statistics": {"passes": 3}}\n', encoding="utf-8")
    picture = tmp_path / "picture.svg"
    arguments = [f"--trace={trace}", f"--ar={tmp_path / 'ar.jsonl'}", "--line=2", f"--output={picture}"]
    assert draw_refinement.main(arguments) == 0
    root = ElementTree.parse(picture).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == ["source", "zwei <Hunde>"]
    assert texts.count("two dogs") == 2
    assert [text for text in texts if text in ("2 passes", "3 steps")] == ["2 passes", "3 steps"]
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))[1:-2]  # without the background and the legend
    assert [box.get("stroke") for box in boxes] == ["none", draw_refinement.MASKED_AGAIN, "none", "none"]
    assert [box.get("fill") == draw_refinement.CHANGED for box in boxes] == [False, False, False, True]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (json.dumps(RECORD), 1, "no trace of line 1"),
        (json.dumps(RECORD | {"passes": []}), 2, "has no passes"),
        ("{}", 1, "not a trace"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(tmp_path, capsys, content, line, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(content + "\n", encoding="utf-8")
    assert draw_refinement.main([f"--trace={path}", f"--line={line}", f"--output={tmp_path / 'x.svg'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()


def test_output_of_another_input_is_an_error(trace, tmp_path, capsys):
    (tmp_path / "ar.jsonl").write_text('{"text": "two dogs"}\n{"text": "two dogs"}\n', encoding="utf-8")
    arguments = [f"--trace={trace}", "--line=2", f"--output={tmp_path / 'x.svg'}"]
    assert draw_refinement.main([*arguments, f"--ar={tmp_path / 'ar.jsonl'}"]) == 2
    assert "--format=jsonl" in capsys.readouterr().err
    (tmp_path / "ar.jsonl").write_text("{}\n", encoding="utf-8")
    assert draw_refinement.main([*arguments, f"--ar={tmp_path / 'ar.jsonl'}"]) == 2
    assert "1 lines, so no line 2" in capsys.readouterr().err


def test_the_committed_picture_is_one():
    root = ElementTree.parse(ROOT / "docs/images/refinement.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"pass 1", "pass 4", "4 passes", "14 steps"} <= set(texts)
