"""The playground's results as HTML. Every piece of text is escaped; colours follow the page's light or dark theme."""

import html
import math
from collections.abc import Sequence

from janus_jax.play.playground import CtcRows, DagVertices, Decoded

STYLE = """
.janus { overflow-x: auto; }
@media (max-width: 40rem) { .janus th, .janus td { padding: .25rem !important; font-size: .9rem; } }
.janus table { border-collapse: collapse; width: 100%; }
.janus table, .janus tr { border: 0 !important; }
.janus th, .janus td { text-align: left; padding: .3rem .6rem; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.janus td.number, .janus th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.janus .row { display: flex; flex-wrap: wrap; gap: .3rem; margin: .35rem 0; align-items: stretch; }
.janus .row > .name { min-width: 4.5rem; opacity: .8; align-self: center; }
.janus .token { display: inline-flex; flex-direction: column; align-items: center; padding: .1rem .4rem; border-radius: .3rem;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color); white-space: pre; min-height: 2.6rem;
  background: color-mix(in srgb, #00a05a calc(var(--sure, 0) * 55%), transparent); }
.janus .token small { color: inherit; opacity: .85; font-size: .72rem; line-height: 1.1; font-variant-numeric: tabular-nums; }
.janus .token.again { border: 2px dashed var(--body-text-color); }
.janus .token.blank { opacity: .6; }
.janus .token.rejected { text-decoration: line-through; border-style: dotted; background: color-mix(in srgb, #d03030 25%, transparent); }
.janus .token.new { border: 2px solid var(--body-text-color); }
.janus .legend { opacity: .8; font-size: .88em; }
.janus svg text { fill: var(--body-text-color); font: 12px system-ui, sans-serif; }
.janus svg .small { font-size: 10px; }
.janus svg .vertex { fill: var(--background-fill-primary); stroke: var(--border-color-primary); }
.janus svg .vertex.path { stroke: var(--body-text-color); stroke-width: 2.5; }
.janus svg .link { fill: none; stroke: var(--body-text-color); opacity: .5; }
.janus svg .link.path { opacity: 1; }
"""

_WORD_MARKS = "▁ or Ġ begins a word: it stands for the space before it."
_LEAST_VISITS, _LEAST_LINK = 0.05, 0.1  # of vertices and links that are drawn


def table(results: Sequence[Decoded]) -> str:
    """The modes beside each other: output, milliseconds, decoder passes."""
    if not results:
        return ""
    greedy = next((one.seconds for one in results if one.trial.name == "ar"), None)
    rows = []
    for one in results:
        times = f'<td class="number">{greedy / one.seconds:.1f}x</td>' if greedy else ""
        rows.append(
            f"<tr><td>{_text(one.trial.label)}</td><td>{_text(one.output.text)}</td>"
            f'<td class="number">{1000 * one.seconds:.0f}</td>{times}'
            f'<td class="number">{one.output.statistics.get("passes", "")}</td></tr>'
        )
    speed = '<th class="number">speed</th>' if greedy else ""
    head = f'<tr><th>decoding</th><th>output</th><th class="number">ms</th>{speed}<th class="number">passes</th></tr>'
    note = "ms: the faster of two calls for this one sentence; passes: of the decoder"
    if greedy:
        note += "; speed: compared with greedy AR"
    return _page(f"<table>{head}{''.join(rows)}</table>", f"{note}.")


def steps(decoded: Decoded, count: int) -> str:
    """The first `count` tokens of an AR output with their probabilities; the end of the sentence counts as a token."""
    pieces = [*decoded.pieces, "end"]
    tokens = [
        _token(piece, _chance(score))
        for piece, score in zip(pieces[:count], decoded.output.token_scores[:count], strict=True)
    ]
    return _page(
        _row(f"step {count}", tokens),
        f"Each step of the decoder adds one token. Below a token: its probability. {_WORD_MARKS}",
    )


def refinement(decoded: Decoded, count: int) -> str:
    """The first `count` passes of mask-predict."""
    rows = []
    for number, one in enumerate(decoded.output.trace[:count], 1):
        tokens = [
            _token(piece, _chance(score), "again" if again else "", "masked again" if again else "")
            for piece, score, again in zip(one["tokens"], one["scores"], one["remasked"], strict=True)
        ]
        rows.append(_row(f"pass {number}", tokens))
    legend = (
        "A pass fills all masked tokens at once. Dashed tokens are masked again: the next pass fills them anew. Below a "
        f"token: its probability when it was filled. {_WORD_MARKS}"
    )
    return _page("".join(rows), legend)


def ctc(rows: CtcRows, decoded: Decoded) -> str:
    """The rows of a CTC pass, and the output."""
    tokens = []
    for piece, chance, blank, chosen in zip(rows.pieces, rows.tokens, rows.blanks, rows.chosen, strict=True):
        if chosen:
            tokens.append(_token(piece, chance))
        else:
            tokens.append(_token("∅", blank, "blank", f"blank; the likeliest token is {piece}, {chance:.2f}"))
    body = _row("rows", tokens) + _row("output", [_token(piece, None) for piece in decoded.pieces])
    legend = (
        "One pass gives all rows. Each row emits a token or the blank (∅). Equal neighbours are merged, then blanks are "
        f"dropped. Below: the probability. {_WORD_MARKS}"
    )
    return _page(body, legend)


def dag(graph: DagVertices, outputs: Sequence[Decoded]) -> str:
    """The likely part of the graph of a DAG pass, and the best outputs."""
    legend = (
        f"One pass gives a graph. Drawn are vertices that at least {_LEAST_VISITS:.0%} of the paths visit, each with its "
        "likeliest token, its probability and the share of the paths; and links of at least "
        f"{_LEAST_LINK:.0%}. The thick path is the lookahead output."
    )
    return _page(_graph(graph) + ranking(outputs), legend)


def speculation(decoded: Decoded) -> str:
    """The passes of speculation: accepted and rejected tokens, and the token of the verifying pass."""
    rows, accepted = [], 0
    for number, one in enumerate(decoded.output.trace, 1):
        count = one["accepted"]
        # A drafted end of the sentence is emitted by the verifying pass itself.
        same = one["drafted"][count : count + 1] == one["tokens"][-1:]
        tokens = [_token(piece, None, "accepted", "accepted", "✓") for piece in one["tokens"][: count + same]]
        accepted += len(tokens)
        if not same:
            tokens += [_token(piece, None, "rejected", "rejected", "✗") for piece in one["drafted"][count:]]
            tokens.append(_token(one["tokens"][-1], None, "new", "of the verifying pass", "+"))
        rows.append(_row(f"pass {number}", tokens))
    legend = (
        f"A pass verifies a draft: {accepted} drafted tokens are accepted (✓). Behind the first rejected one (✗) the pass "
        "has a token of its own (+). The output is that of greedy AR."
    )
    return _page("".join(rows), legend)


def ranking(results: Sequence[Decoded]) -> str:
    """The outputs of searches with a beam, best first, with scores."""
    parts = []
    for decoded in results:
        rows = "".join(
            f'<tr><td class="number">{number}</td><td>{_text(one.text)}</td><td class="number">{one.score:.3f}</td></tr>'
            for number, one in enumerate((decoded.output, *decoded.output.others), 1)
        )
        head = f'<tr><th></th><th>{_text(decoded.trial.label)}</th><th class="number">score</th></tr>'
        parts.append(f"<table>{head}{rows}</table>")
    return _page("".join(parts), "Scores of one search compare with each other, not with those of another search.")


def filled(decoded: Decoded, target: str) -> str:
    """The target with gaps, and its completed text."""
    body = f"<p><b>target</b> {_text(target)}</p><p><b>output</b> {_text(decoded.output.text)}</p>"
    passes = decoded.output.statistics.get("passes", 0)
    return _page(body, f"{1000 * decoded.seconds:.0f} ms, {passes} decoder passes, mode {decoded.trial.mode}.")


def _graph(graph: DagVertices) -> str:
    """An SVG: vertices from left to right, links as arcs above them."""
    shown = [v for v in range(len(graph.visits)) if graph.visits[v] >= _LEAST_VISITS or v in graph.path]
    place = {vertex: 50 + 92 * number for number, vertex in enumerate(shown)}
    on_path = set(zip(graph.path, graph.path[1:], strict=False))
    links, vertices, highest = [], [], 40.0
    for a in shown:
        for b in shown:
            chance = float(graph.links[a, b])
            if b <= a or (chance < _LEAST_LINK and (a, b) not in on_path):
                continue
            height = 14 + 9 * (shown.index(b) - shown.index(a))
            highest = max(highest, height)
            x, y = place[a], place[b]
            links.append(
                f'<path class="link{" path" if (a, b) in on_path else ""}" stroke-width="{0.5 + 3 * chance:.1f}" '
                f'd="M {x} 0 C {x} {-height} {y} {-height} {y} 0"><title>{chance:.2f}</title></path>'
            )
    for vertex in shown:
        x, name = place[vertex], _text(graph.pieces[vertex][0])
        others = ", ".join(
            f"{piece} {chance:.2f}" for piece, chance in zip(graph.pieces[vertex], graph.tokens[vertex], strict=False)
        )
        vertices.append(
            f'<rect class="vertex{" path" if vertex in graph.path else ""}" x="{x - 42}" y="0" width="84" height="38" rx="5">'
            f"<title>vertex {vertex + 1}: {_text(others)}</title></rect>"
            f'<text x="{x}" y="16" text-anchor="middle">{name}</text>'
            f'<text class="small" x="{x}" y="31" text-anchor="middle">{graph.tokens[vertex][0]:.2f}, '
            f"{graph.visits[vertex]:.0%}</text>"
        )
    width = 92 * len(shown) + 8
    return (
        f'<svg role="img" aria-label="graph of the output" width="{width}" height="{highest + 48:.0f}" '
        f'viewBox="0 {-highest - 4:.0f} {width} {highest + 48:.0f}">{"".join(links)}{"".join(vertices)}</svg>'
    )


def _chance(score: float) -> float:
    return math.exp(min(score, 0.0)) if not math.isnan(score) else 0.0


def _token(piece: str, chance: float | None, kind: str = "", title: str = "", mark: str = "") -> str:
    """One token; below it a mark, or its probability."""
    below = mark or ("" if chance is None else f"{chance:.2f}")
    sure = 0.0 if chance is None else chance
    classes = f"token {kind}".strip()
    return (
        f'<span class="{classes}" style="--sure: {sure:.3f}" title="{_text(title)}">{_text(piece)}'
        f"<small>{below}</small></span>"
    )


def _row(name: str, tokens: Sequence[str]) -> str:
    return f'<div class="row"><span class="name">{name}</span>{"".join(tokens)}</div>'


def _page(body: str, legend: str) -> str:
    return f'<div class="janus">{body}<p class="legend">{legend}</p></div>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)
