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
    marks = [f"<li>{meaning}</li>" for mark, meaning in _MARKS.items() if mark in text]
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
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>__TITLE__</title>
<style>
  :root { --text: #1b1b1b; --page: #fff; --quiet: #595959; --line: #767676; --focus: #0b57d0; --sure: 0, 150, 60; --most: .7; }
  @media (prefers-color-scheme: dark) {
    :root { --text: #ececec; --page: #17191c; --quiet: #b4b4b4; --line: #9a9a9a; --focus: #8ab4f8; --sure: 0, 170, 80; --most: .55; }
  }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 64rem; margin: 1.5rem auto; padding: 0 1rem; color: var(--text); background: var(--page); }
  h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
  nav { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; padding: .5rem 0; background: var(--page); border-bottom: 1px solid var(--line); z-index: 1; }
  button { font: inherit; padding: .3rem .8rem; color: inherit; background: none; border: 1px solid var(--line); border-radius: .4rem; cursor: pointer; }
  button[aria-disabled=true] { color: var(--quiet); border-style: dotted; cursor: default; }
  :focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
  p { overflow-wrap: anywhere; }
  .pass { display: flex; gap: .75rem; padding: .4rem 0 .4rem .6rem; border-left: 4px solid transparent; scroll-margin-top: 6rem; }
  .pass[aria-current] { border-left-color: var(--text); }
  .pass h2 { flex: none; width: 10.5rem; margin: 0; font-size: 1em; font-weight: 400; }
  .pass[aria-current] h2 { font-weight: 700; }
  .pass h2 small { display: block; font-weight: 400; }
  .pass ol { display: flex; flex-wrap: wrap; gap: .35rem; flex: 1; min-width: 0; margin: 0; padding: 0; list-style: none; }
  .pass li { position: relative; display: flex; flex-direction: column; }
  .token { padding: .1rem .35rem; border: 2px solid transparent; border-radius: .25rem; min-height: 1.5em; text-align: center; white-space: pre-wrap; overflow-wrap: anywhere;
    background: rgba(var(--sure), calc(var(--most) * var(--p, 0) + .05)); }
  .changed { font-weight: 700; text-decoration: underline; text-decoration-thickness: 2px; }
  .again { border: 2px dashed var(--text); }
  small { color: var(--quiet); font-size: .8rem; text-align: center; }
  .pass h2 small { text-align: left; }
  .spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  .legend { color: var(--quiet); font-size: .9em; }
  .legend .token { color: var(--text); }
  @media (max-width: 40rem) { .pass { flex-direction: column; gap: .2rem; } .pass h2 { width: auto; } .pass h2 small { display: inline; margin-left: .5rem; } }
</style>
<h1>__TITLE__</h1>
<nav aria-label="sentences and passes">
  <button id="previous" aria-keyshortcuts="ArrowLeft" aria-label="previous sentence">&larr; sentence</button>
  <button id="next" aria-keyshortcuts="ArrowRight" aria-label="next sentence">sentence &rarr;</button>
  <button id="back" aria-keyshortcuts="ArrowUp" aria-label="previous pass">&uarr; pass</button>
  <button id="forward" aria-keyshortcuts="ArrowDown" aria-label="next pass">pass &darr;</button>
  <span id="where" role="status"></span>
</nav>
<noscript><p>This page needs JavaScript, which is switched off.</p></noscript>
<p><b>source</b> <span id="source" dir="auto"></span></p>
<div id="passes"></div>
<p><b>output</b> <span id="output" dir="auto"></span></p>
<p class="legend">Mask-predict fills all masked tokens at once, masks the least sure ones again, and fills them anew in the next pass.</p>
<ul class="legend">
  <li><span class="token" style="--p: .97">token</span> <small>97%</small> The probability of the token when it was filled. The greener the
    box, the more probable.</li>
  <li><span class="token changed">token</span> Bold and underlined: this pass changed it.</li>
  <li><span class="token again">token</span> <small>30% &times;</small> Dashed, with a cross: masked again after this pass, so the next pass fills it anew.</li>
  __MARKS__
  <li>The arrow keys move as the buttons do.</li>
</ul>
<script type="application/json" id="data">__DATA__</script>
<script>
  const records = JSON.parse(document.getElementById("data").textContent);
  let sentence = 0, pass = 0;
  const get = id => document.getElementById(id);
  function add(parent, tag, className, text) {
    const child = document.createElement(tag);
    if (className) child.className = className;
    if (text !== undefined) child.textContent = text;
    parent.append(child);
    return child;
  }
  // The pixels of the widest token of each slot in any pass, so that the slots of all passes stand below each other.
  function widths(passes) {
    const pen = document.createElement("canvas").getContext("2d"), style = getComputedStyle(document.body);
    pen.font = `bold ${style.fontSize} ${style.fontFamily}`;
    return (passes[0]?.tokens ?? []).map((_, slot) => Math.max(...passes.map(one => pen.measureText(one.tokens[slot] ?? "").width)));
  }
  function show() {
    const record = records[sentence], last = record ? record.passes.length - 1 : 0;
    const ends = { previous: sentence <= 0, next: sentence >= records.length - 1, back: pass <= 0, forward: pass >= last };
    // Disabled buttons would lose the keyboard's focus.
    for (const [id, end] of Object.entries(ends)) get(id).setAttribute("aria-disabled", end);
    if (!record) { get("where").textContent = "no sentences"; return; }
    const place = record.passes.length ? `pass ${pass + 1} of ${record.passes.length}` : "no passes: nothing was decoded";
    get("where").textContent = `line ${record.line} (${sentence + 1} of ${records.length}), ${place}`;
    get("source").textContent = record.source;
    get("output").textContent = record.text;
    const pixels = widths(record.passes), passes = document.createDocumentFragment();
    record.passes.slice(0, pass + 1).forEach((one, number) => {
      const row = add(passes, "section", "pass");
      if (number === pass) row.setAttribute("aria-current", "step");
      const masks = one.remasked.filter(Boolean).length;
      add(add(row, "h2", "", `pass ${number + 1}`), "small", "", `${masks} of ${one.tokens.length} masked again`);
      const list = add(row, "ol");
      list.dir = "auto";
      one.tokens.forEach((text, slot) => {
        const item = add(list, "li");
        item.style.minWidth = `max(3.1rem, min(${Math.ceil(pixels[slot])}px + .7rem + 5px, 100%))`;
        const score = one.scores[slot], sure = score === null ? 0 : Math.exp(score);
        const before = number ? record.passes[number - 1].tokens[slot] : text, again = one.remasked[slot];
        const token = add(item, "span", "token" + (again ? " again" : "") + (before !== text ? " changed" : ""), text);
        token.style.setProperty("--p", sure.toFixed(3));
        token.title = score === null ? "its probability is not a number" : `probability ${sure.toFixed(3)}`;
        const figure = add(item, "small", "", (score === null ? "?" : `${Math.round(100 * sure)}%`) + (again ? " \u00d7" : ""));
        figure.dir = "ltr";
        if (again) add(figure, "span", "spoken", " masked again");
      });
    });
    get("passes").replaceChildren(passes);
  }
  function move(sentences, passes) {
    const shown = [sentence, pass].join();
    const chosen = Math.max(Math.min(sentence + sentences, records.length - 1), 0);
    if (chosen !== sentence) { sentence = chosen; pass = 0; }
    const last = records[sentence] ? records[sentence].passes.length - 1 : 0;
    pass = Math.max(Math.min(pass + passes, last), 0);
    if (shown === [sentence, pass].join()) return false;
    show();
    document.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    return true;
  }
  get("previous").onclick = () => move(-1, 0);
  get("next").onclick = () => move(1, 0);
  get("back").onclick = () => move(0, -1);
  get("forward").onclick = () => move(0, 1);
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", event => {
    // With such a key, an arrow belongs to the browser: Alt and left is its way back.
    if (!keys[event.key] || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (move(...keys[event.key])) event.preventDefault();  // else it scrolls the page
  });
  show();
</script>
</html>
"""
