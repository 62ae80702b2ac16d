"""A page on which a reader steps through the passes of mask-predict and sees the probability of each token."""

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
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
            for name in ("line", "source", "text", "passes"):
                record[name]
            for one in record["passes"]:
                if not len(one["tokens"]) == len(one["scores"]) == len(one["remasked"]):
                    raise ValueError("lists of different lengths")
        except (ValueError, KeyError, TypeError) as error:
            raise LinesError(
                f"{path}, line {number}: not a trace ({error}); write one with python -m janus_jax.decode --mode=nar --trace=FILE"
            ) from error
        records.append(record)
    return records


def render(records: Sequence[dict[str, Any]], title: str = "Refinement") -> str:
    """One HTML page without external files: buttons and arrow keys move from pass to pass and from sentence to sentence.

    Args:
      records: of `read_traces`.
      title: of the page.
    """
    # "</" would end the script that holds the data.
    data = json.dumps(list(records), ensure_ascii=False).replace("</", "<\\/")
    return _PAGE.replace("__TITLE__", html.escape(title)).replace("__DATA__", data)


def write(path: str | os.PathLike[str], traces: str | os.PathLike[str]) -> int:
    """Renders a file of traces as a page; returns the number of sentences.

    Raises:
      LinesError: a file cannot be read or written.
    """
    records = read_traces(traces)
    write_bytes(path, render(records, Path(traces).name).encode())
    return len(records)


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
  .row:not([aria-current]) { opacity: .45; }
  .token { padding: .1rem .35rem; border-radius: .25rem; border: 1px solid transparent; white-space: pre; }
  .again { border: 1px dashed #b00; text-decoration: line-through; }
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
<p class="legend">Green: how probable the token was when it was filled (the figure shows on hovering). Bold: changed by the pass.
Dashed and struck through: masked again after it. Arrow keys move.</p>
<script type="application/json" id="data">__DATA__</script>
<script>
  const records = JSON.parse(document.getElementById("data").textContent);
  let sentence = 0, pass = 0;
  const get = id => document.getElementById(id);
  function show() {
    const record = records[sentence];
    if (!record) { get("where").textContent = "no sentences"; return; }
    get("where").textContent = `line ${record.line} (${sentence + 1} of ${records.length}), pass ${pass + 1} of ${record.passes.length}`;
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
        const token = document.createElement("span"), sure = Math.exp(one.scores[slot]);
        const before = number ? record.passes[number - 1].tokens[slot] : text;
        token.className = "token" + (one.remasked[slot] ? " again" : "") + (before !== text ? " changed" : "");
        token.style.background = `rgba(0, 150, 60, ${(0.05 + 0.75 * sure).toFixed(3)})`;
        token.title = `probability ${sure.toFixed(3)}`;
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
