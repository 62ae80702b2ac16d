"""The page of passes: its data, and how a browser shows it."""

import json
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


def test_the_page_holds_the_data_and_nothing_from_elsewhere(tmp_path, capsys):
    traces = write(tmp_path, RECORD, {**RECORD, "line": 2})
    assert main([f"--traces={traces}", f"--trace_html={tmp_path / 'page.html'}"]) == 0
    assert "2 sentences" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data.replace("<\\/", "</"))[0] == RECORD
    assert not re.search(r"(src|href)=|https?://|@import", page)


@pytest.mark.parametrize(
    "line",
    ["{", "{}", '{"line": 1, "source": "", "text": "", "passes": [{"tokens": ["a"], "scores": [], "remasked": []}]}'],
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
