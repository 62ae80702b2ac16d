"""A page on which a reader steps through the passes of mask-predict and sees the probability of each token."""

import html
import json
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from janus_jax.decode.io import LinesError, read_lines, write_bytes


def read_traces(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records that `python -m janus_jax.decode --mode=nar --trace=FILE` wrote.

    Raises:
      LinesError: the file is missing or holds something else.
    """
    records = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            _check(record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise LinesError(
                f"{path}, line {number}: not a trace ({reason}); write one with python -m janus_jax.decode --mode=nar --trace=FILE"
            ) from error
        records.append(record)
    return records


def _check(record: Any) -> None:
    """Raises TypeError, ValueError or KeyError if a record is not as `decode.io.render_trace` writes it."""
    for name, kind in (("line", int), ("source", str), ("text", str), ("passes", list)):
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} has another type")
    for one in record["passes"]:
        if not len(one["tokens"]) == len(one["scores"]) == len(one["remasked"]):
            raise ValueError("lists of different lengths")
        for name, kind in (("tokens", str), ("scores", (int, float)), ("remasked", bool)):
            if not isinstance(one[name], list) or not all(isinstance(value, kind) for value in one[name]):
                raise TypeError(f"{name} has another type")


def render(records: Sequence[dict[str, Any]], title: str = "Mask-predict, pass by pass") -> str:
    """One HTML page without external files: buttons and arrow keys move from pass to pass and from sentence to sentence.

    Args:
      records: of `read_traces`.
      title: of the page.
    """
    pages = [
        {
            **{name: record[name] for name in ("line", "source", "text")},
            "passes": [{**one, "scores": list(map(_score, one["scores"]))} for one in record["passes"]],
        }
        for record in records
    ]
    # "<" would begin markup that ends or changes the script which holds the data.
    data = json.dumps(pages, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    text = "".join(token for page in pages for one in page["passes"] for token in one["tokens"])
    marks = [meaning for mark, meaning in _MARKS.items() if mark in text]
    parts = {"TITLE": html.escape(title), "MARKS": " ".join(marks), "DATA": data}
    return re.sub("__(TITLE|MARKS|DATA)__", lambda match: parts[match[1]], _PAGE)


def _score(value: float) -> float | None:
    """A log-probability as JSON has it: no infinity, and None for what is no number."""
    return None if math.isnan(value) else min(max(value, -1000.0), 0.0)


def write(path: str | os.PathLike[str], traces: str | os.PathLike[str]) -> int:
    """Renders a file of traces as a page; returns the number of sentences.

    Raises:
      LinesError: a file cannot be read or written.
    """
    records = read_traces(traces)
    write_bytes(path, render(records).encode("utf-8", errors="replace"))
    return len(records)


# What a tokenizer writes in its tokens.
_MARKS = {
    "▁": "<b>▁</b> begins a word: it stands for the space before it.",
    "Ġ": "<b>Ġ</b> begins a word: it stands for the space before it.",
    "@@": "<b>@@</b> ends a token whose word goes on.",
    "<0x": "<b>&lt;0x..&gt;</b> is one byte of a character that the vocabulary lacks.",
}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }
  .row { display: flex; flex-wrap: wrap; gap: .25rem; margin: .25rem 0; align-items: baseline; }
  .row > b { width: 5rem; font-weight: 500; color: #666; }
  .row[aria-current] > b { color: #000; font-weight: 700; }
  .row:not([aria-current]) { opacity: .7; }
  .token { padding: .1rem .35rem; border-radius: .25rem; border: 1px solid transparent; white-space: pre; }
  .again { border: 1px dashed #999; color: #777; }
  .changed { font-weight: 700; }
  button { font: inherit; padding: .2rem .8rem; }
  .legend { color: #666; font-size: .9em; }
</style>
<h1>__TITLE__</h1>
<p>
  <button id="previous">&larr; sentence</button> <button id="next">sentence &rarr;</button>
  <button id="back">&uarr; pass</button> <button id="forward">pass &darr;</button>
  <span id="where" role="status"></span>
</p>
<p><b>source</b> <span id="source"></span></p>
<div id="passes"></div>
<p><b>output</b> <span id="output"></span></p>
<p class="legend">Mask-predict fills all masked tokens at once, masks the least sure ones again, and fills them anew in the next pass.</p>
<ul class="legend">
  <li><span class="token" style="background: rgba(0, 150, 60, .8)">token</span> The greener a token, the more probable it was when
    it was filled; the pointer on it shows the figure.</li>
  <li><span class="token changed">token</span> Bold: this pass changed it.</li>
  <li><span class="token again">token</span> Dashed: masked again after this pass, so the next pass fills it anew.</li>
  <li>__MARKS__ The arrow keys move as the buttons do.</li>
</ul>
<script type="application/json" id="data">__DATA__</script>
<script>
  const records = JSON.parse(document.getElementById("data").textContent);
  let sentence = 0, pass = 0;
  const get = id => document.getElementById(id);
  function show() {
    const record = records[sentence];
    if (!record) { get("where").textContent = "no sentences"; return; }
    const place = record.passes.length ? `pass ${pass + 1} of ${record.passes.length}` : "no passes: nothing was decoded";
    get("where").textContent = `line ${record.line} (${sentence + 1} of ${records.length}), ${place}`;
    get("source").textContent = record.source;
    get("output").textContent = record.text;
    const rows = record.passes.slice(0, pass + 1).map((one, number) => {
      const row = document.createElement("div");
      row.className = "row";
      if (number === pass) row.setAttribute("aria-current", "step");
      const name = document.createElement("b");
      name.textContent = `pass ${number + 1}`;
      row.append(name);
      one.tokens.forEach((text, slot) => {
        const token = document.createElement("span"), score = one.scores[slot], sure = score === null ? 0 : Math.exp(score);
        const before = number ? record.passes[number - 1].tokens[slot] : text;
        token.className = "token" + (one.remasked[slot] ? " again" : "") + (before !== text ? " changed" : "");
        token.style.background = `rgba(0, 150, 60, ${(0.05 + 0.75 * sure).toFixed(3)})`;
        token.title = score === null ? "its probability is not a number" : `probability ${sure.toFixed(3)}`;
        token.textContent = text;
        row.append(token);
      });
      return row;
    });
    get("passes").replaceChildren(...rows);
  }
  function move(sentences, passes) {
    if (sentences) { sentence = Math.min(Math.max(sentence + sentences, 0), records.length - 1); pass = 0; }
    const last = records[sentence] ? records[sentence].passes.length - 1 : 0;
    pass = Math.min(Math.max(pass + passes, 0), Math.max(last, 0));
    show();
  }
  get("previous").onclick = () => move(-1, 0);
  get("next").onclick = () => move(1, 0);
  get("back").onclick = () => move(0, -1);
  get("forward").onclick = () => move(0, 1);
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", event => {
    if (keys[event.key]) { event.preventDefault(); move(...keys[event.key]); }
  });
  show();
</script>
</html>
"""
