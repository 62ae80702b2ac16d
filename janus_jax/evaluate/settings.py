"""One model under several decoding settings: quality and speed side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from janus_jax.config import ConfigError
from janus_jax.decode import MODES, Generator
from janus_jax.decode.keywords import for_scores, places, unknown
from janus_jax.evaluate.latency import measure
from janus_jax.evaluate.scores import AlignmentError, score
from janus_jax.text import list_of_texts

Keywords = dict[str, Any]  # of `Generator.generate`: mode, and settings of that mode


def standard_settings(modes: Sequence[str]) -> list[Keywords]:
    """The settings that are compared by default, of these modes."""
    return [{"mode": name, **trial} for name, mode in MODES.items() if name in modes for trial in mode.trials]


def parse_setting(text: str, flag: str = "--setting") -> Keywords:
    """A setting written "ar:beam=1" or "nar:passes=4,length_beam=3" as a dictionary.

    Args:
      text: the setting.
      flag: that gave it, for messages.

    Raises:
      ConfigError: an unknown mode, or not of that form.
    """
    mode, _, rest = text.partition(":")
    if mode not in MODES:
        raise ConfigError(f"{flag}={text}: {mode!r} is not one of {', '.join(MODES)}; write for example nar:passes=4")
    setting: Keywords = {"mode": mode}
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{flag}={text}: {item!r} is not name=value; write for example {mode}:{item}=1")
        if name in setting:
            raise ConfigError(f"{flag}={text}: {name} stands in it twice; leave one out")
        if name not in places(mode):
            raise ConfigError(f"{flag}={text}: {unknown(name, mode)}")
        setting[name] = _number(value)
    return setting


def describe(setting: Keywords) -> str:
    """A setting as `parse_setting` reads it."""
    rest = ",".join(f"{name}={value}" for name, value in setting.items() if name != "mode")
    return setting["mode"] + (f":{rest}" if rest else "")


def evaluate_settings(
    generator: Generator,
    sources: Sequence[str],
    references: Sequence[str],
    settings: Sequence[Keywords],
    *,
    runs: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Decodes `sources` under each setting; scores and times it.

    Sentences a second do not include compilation: all sentences are decoded once before they are timed.

    Args:
      generator: the model.
      sources, references: aligned lines.
      settings: each as keywords of `Generator.generate`.
      runs: timed runs of each setting; the median counts.
      progress: called with the number of sentences just decoded; in total (runs + 1) * len(sources) for each setting.

    Returns:
      A dict for each setting: `setting` (text), `sentences_per_second`, every metric of `score`, `hypotheses`.

    Raises:
      AlignmentError: sources and references differ in number.
      ConfigError: an impossible setting.
    """
    sources, references = list_of_texts("sources", sources), list_of_texts("references", references)
    if len(sources) != len(references):
        raise AlignmentError(
            f"{len(sources)} sources do not match {len(references)} references; both need the same lines in the same order"
        )
    results = []
    for setting in settings:

        def decode(lines: Sequence[str], setting: Keywords = setting) -> list[str]:
            return [output.text for output in generator.generate(lines, progress=progress, **for_scores(setting))]

        latency = measure(decode, sources, runs=runs)
        metrics = score(latency.results, references)
        results.append(
            {
                "setting": describe(setting),
                "sentences_per_second": latency.sentences_per_second,
                **metrics,
                "hypotheses": latency.results,
            }
        )
    return results


_COLUMNS = (
    ("decoding", "setting", "{}"),
    ("exact match", "exact_match", "{:.1%}"),
    ("BLEU", "bleu", "{:.2f}"),
    ("chrF", "chrf", "{:.2f}"),
    ("length ratio", "length_ratio", "{:.3f}"),
    ("repeated", "repeated", "{:.2%}"),
    ("sentences/s", "sentences_per_second", "{:.1f}"),
)


def format_table(results: Sequence[dict[str, Any]], more: Sequence[str] = ()) -> str:
    """The results of `evaluate_settings` as an aligned Markdown table, a line each; "-" for a metric that is absent.

    Args:
      results: a dict for each line.
      more: names of further metrics, whose columns follow that of the setting.
    """
    columns = [*_COLUMNS[:1], *((name, name, "{:.2f}") for name in more), *_COLUMNS[1:]]
    cells = [[title for title, _, _ in columns]]
    cells += [
        [form.format(one[key]) if one.get(key) is not None else "-" for _, key, form in columns] for one in results
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _number(value: str) -> bool | int | float | str:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
