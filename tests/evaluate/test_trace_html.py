"""The page of passes: its data, and how a browser shows it."""

import json
import math
import os
import re
import shutil
import subprocess

import pytest

from janus_jax.decode.io import LinesError
from janus_jax.evaluate import trace_html
from janus_jax.evaluate.__main__ import main

RECORD = {
    "line": 1, "source": "zwei <b>Hunde</b></script>", "text": "two dogs", "score": -0.2,
    "passes": [
        {"tokens": ["▁dogs", "▁dogs"], "scores": [-1.2, -0.1], "remasked": [True, False]},
        {"tokens": ["▁two", "▁dogs"], "scores": [-0.3, -0.1], "remasked": [False, False]},
    ],
}  # fmt: skip
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def write(tmp_path, *records):
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "trace.jsonl"


def data_of(page):
    """The records of a page, by the rules of JSON, which has no NaN; a browser ends the script at the first "</script"."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)[1]
    assert "<" not in text  # "<!--<script>" would hide the end of the script
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    "source", ["<!--<script>", "</script>", "<![CDATA[", "__DATA__ __MARKS__ __TITLE__", "\u2028", "&lt;"]
)
def test_a_source_cannot_change_the_page(source):
    page = trace_html.render([{**RECORD, "source": source}])
    assert data_of(page)[0]["source"] == source
    assert page.count("<script") == 2


def test_scores_that_are_no_numbers_leave_the_page_whole(tmp_path):
    scores = [[math.nan, -math.inf], [math.inf, -0.1]]
    passes = [{**one, "scores": part} for one, part in zip(RECORD["passes"], scores, strict=True)]
    records = trace_html.read_traces(write(tmp_path, {**RECORD, "score": math.nan, "passes": passes}))
    assert [one["scores"] for one in data_of(trace_html.render(records))[0]["passes"]] == [[None, -1000], [0, -0.1]]


def test_the_page_holds_the_data_and_nothing_from_elsewhere(tmp_path, capsys):
    traces = write(tmp_path, RECORD, {**RECORD, "line": 2})
    assert main([f"--traces={traces}", f"--trace_html={tmp_path / 'page.html'}"]) == 0
    assert "2 sentences" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert data_of(page)[0] == {name: RECORD[name] for name in ("line", "source", "text", "passes")}
    assert "<title>Mask-predict, pass by pass</title>" in page
    assert "▁</b> begins a word" in page
    assert "Ġ" not in page
    assert not re.search(r"(src|href)=|https?://|@import", page)


def test_the_page_is_written_through_links_and_fifos(tmp_path):
    traces = write(tmp_path, RECORD)
    (tmp_path / "link.html").symlink_to("page.html")
    os.mkfifo(tmp_path / "fifo")
    assert main([f"--traces={traces}", f"--trace_html={tmp_path / 'link.html'}"]) == 0
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reader:
        assert main([f"--traces={traces}", f"--trace_html={tmp_path / 'fifo'}"]) == 0
        assert reader.stdout.read() == (tmp_path / "page.html").read_bytes()
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "fifo").is_fifo()
    before = traces.read_bytes()
    assert main([f"--traces={traces}", f"--trace_html={traces}"]) == 2
    assert traces.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{}",
        "[]",
        "1",
        "[" * 100_000,
        json.dumps({**RECORD, "source": 3}),
        json.dumps({**RECORD, "passes": [3]}),
        json.dumps({**RECORD, "passes": [{"tokens": [1], "scores": [0], "remasked": [True]}]}),
        '{"line": 1, "source": "", "text": "", "passes": [{"tokens": ["a"], "scores": [], "remasked": []}]}',
    ],
)
def test_what_is_not_a_trace_is_named(tmp_path, line):
    (tmp_path / "trace.jsonl").write_text(json.dumps(RECORD) + "\n" + line + "\n")
    with pytest.raises(LinesError, match=r"trace\.jsonl, line 2: not a trace"):
        trace_html.read_traces(tmp_path / "trace.jsonl")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")
def test_a_browser_shows_it_and_steps(tmp_path):
    page = trace_html.render([RECORD])
    steps = "<script>document.getElementById('forward').click()</script></html>"
    (tmp_path / "page.html").write_text(page.replace("</html>", steps))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "line 1 (1 of 1), pass 2 of 2" in shown
    assert "zwei &lt;b&gt;Hunde&lt;/b&gt;&lt;/script&gt;" in shown  # as text, not as markup
    tokens = re.findall(r'<span class="token([^"]*)"[^>]*title="probability ([\d.]+)"[^>]*>([^<]*)</span>', shown)
    assert tokens == [
        (" again", "0.301", "▁dogs"), ("", "0.905", "▁dogs"), (" changed", "0.741", "▁two"), ("", "0.905", "▁dogs"),
    ]  # fmt: skip
