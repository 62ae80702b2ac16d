"""The page of passes: its data, and how a browser shows it."""

import json
import math
import os
import re
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


def test_a_browser_shows_it_and_steps(chromium_path, tmp_path):
    page = trace_html.render([RECORD])
    steps = "<script>document.getElementById('forward').click()</script></html>"
    (tmp_path / "page.html").write_text(page.replace("</html>", steps))
    page = f"file://{tmp_path / 'page.html'}"
    command = [chromium_path, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "line 1 (1 of 1), pass 2 of 2" in shown
    assert "zwei &lt;b&gt;Hunde&lt;/b&gt;&lt;/script&gt;" in shown  # as text, not as markup
    tokens = re.findall(r'<span class="token([^"]*)"[^>]*title="probability ([\d.]+)"[^>]*>([^<]*)</span>', shown)
    assert tokens == [
        (" again", "0.301", "▁dogs"), ("", "0.905", "▁dogs"), (" changed", "0.741", "▁two"), ("", "0.905", "▁dogs"),
    ]  # fmt: skip


@pytest.fixture
def opened(chromium, tmp_path):
    """A function: records and settings of the browser -> their page, opened."""
    contexts = []

    def open_page(records, **settings):
        (tmp_path / "page.html").write_text(trace_html.render(records), encoding="utf-8")
        contexts.append(chromium.new_context(**settings))
        page = contexts[-1].new_page()
        page.goto(f"file://{tmp_path / 'page.html'}")
        return page

    yield open_page
    for context in contexts:
        context.close()


def where(page):
    return page.get_by_role("status").inner_text()


def test_keys_move_through_passes_and_sentences(opened):
    page = opened([RECORD, {**RECORD, "line": 7}])
    assert where(page) == "line 1 (1 of 2), pass 1 of 2"
    page.keyboard.press("ArrowUp")  # there is no pass before the first
    assert where(page) == "line 1 (1 of 2), pass 1 of 2"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert where(page) == "line 1 (1 of 2), pass 2 of 2"
    page.keyboard.press("Control+ArrowRight")  # belongs to the browser
    page.keyboard.press("ArrowLeft")  # no sentence before the first: the pass stays
    assert where(page) == "line 1 (1 of 2), pass 2 of 2"
    page.keyboard.press("ArrowRight")
    assert where(page) == "line 7 (2 of 2), pass 1 of 2"


def test_buttons_work_without_a_mouse(opened):
    page = opened([RECORD])
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # visible
        names.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert names == ["previous sentence", "next sentence", "previous pass", "next pass"]
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert where(page) == "line 1 (1 of 1), pass 2 of 2"
    assert page.evaluate("document.activeElement.id") == "forward"  # at the end, the button keeps the focus
    assert page.locator("[aria-disabled=true]").evaluate_all("all => all.map(one => one.id)") == [
        "previous", "next", "forward",
    ]  # fmt: skip


def test_it_can_be_read_without_colours(opened):
    page = opened([RECORD])
    page.keyboard.press("ArrowDown")
    figures = [" ".join(text.split()) for text in page.locator("#passes small").all_inner_texts()]
    assert figures == [
        "1 of 2 masked again", "30% \u00d7 masked again", "90%", "0 of 2 masked again", "74%", "90%",
    ]  # fmt: skip
    styles = page.locator("#passes .token").evaluate_all(
        "all => all.map(getComputedStyle).map(one => [one.borderTopStyle, one.textDecorationLine])"
    )
    assert styles == [["dashed", "none"], ["solid", "none"], ["solid", "underline"], ["solid", "none"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_color_schemes(opened, scheme):
    page = opened([RECORD], color_scheme=scheme)
    # Relative luminance and contrast by WCAG 2.2; a token's box lies on the page with its own opacity.
    contrasts = page.evaluate(
        """() => {
          const numbers = text => text.match(/[\\d.]+/g).map(Number);
          const light = color => color.map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
          const style = one => getComputedStyle(one);
          const page = numbers(style(document.body).backgroundColor);
          return [...document.querySelectorAll("body, small, .legend, .token, button, #where")].map(one => {
            const [r, g, b, a = 1] = numbers(style(one).backgroundColor);
            const under = [r, g, b].map((c, i) => c * a + page[i] * (1 - a));
            const [low, high] = [light(numbers(style(one).color).slice(0, 3)), light(under)].sort((x, y) => x - y);
            return (high + .05) / (low + .05);
          });
        }"""
    )
    assert min(contrasts) >= 4.5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 3 * 128) == (scheme == "dark")


def test_a_phone_shows_it_without_scrolling_sideways(opened):
    tokens = ["\u2581a" * 60, *["\u2581token"] * 30]
    one = {"tokens": tokens, "scores": [-0.1] * 31, "remasked": [False] * 31}
    page = opened([{**RECORD, "source": "x" * 300, "passes": [one]}], viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = page.locator("#passes .token").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert len(boxes) == 31
    assert max(boxes) <= 360


def test_slots_of_all_passes_stand_below_each_other(opened):
    page = opened([RECORD])
    page.keyboard.press("ArrowDown")
    left = page.locator("#passes .token").evaluate_all("all => all.map(one => one.getBoundingClientRect().left)")
    assert left[:2] == left[2:]
    assert left[0] < left[1]


def test_the_pass_that_a_key_adds_is_in_view(opened):
    long = {name: RECORD["passes"][0][name] * 40 for name in ("tokens", "scores", "remasked")}
    page = opened([{**RECORD, "passes": [long] * 3}], viewport={"width": 360, "height": 740})
    for number in (2, 3):
        page.keyboard.press("ArrowDown")
        top, bottom = page.locator("[aria-current]").evaluate(
            "one => [one.getBoundingClientRect().top, one.getBoundingClientRect().bottom]"
        )
        assert 0 <= top < 740 or 0 < bottom <= 740, number
        assert page.get_by_role("navigation").evaluate("one => one.getBoundingClientRect().top") >= 0  # in view too
