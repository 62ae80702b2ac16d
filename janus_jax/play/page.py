"""The playground's page, of Gradio, and its JSON endpoint `/generate`."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import jax
from starlette.middleware import Middleware

from janus_jax.command_line import message_of
from janus_jax.decode import MODES
from janus_jax.play import markup
from janus_jax.play.gate import Gate
from janus_jax.play.playground import CtcRows, DagVertices, Decoded, InputError, Playground, Trial

_MODEL = {"concurrency_limit": 1, "concurrency_id": "model"}  # one call of the model at a time
_PRIVATE = {"api_visibility": "private"}  # only /generate is for programs
_TABS = {"ar": "Step by step", "nar": "Mask-predict", "ctc": "CTC", "dag": "DAG", "speculative": "Speculation"}
_ADDRESSES = 10_000  # whose calls are remembered


class Rate:
    """At most so many calls a minute from one address."""

    def __init__(self, calls: int, clock: Callable[[], float] = time.monotonic):
        """Args:
        calls: a minute; 0: no limit.
        clock: seconds.
        """
        self._calls, self._clock, self._lock = calls, clock, threading.Lock()
        self._times: dict[str, deque[float]] = {}

    def check(self, address: str) -> None:
        """Counts a call.

        Raises:
          InputError: there were too many calls within the last minute.
        """
        if self._calls:
            with self._lock:
                self._count(address)

    def _count(self, address: str) -> None:
        now = self._clock()
        if len(self._times) > _ADDRESSES:
            self._times = {name: times for name, times in self._times.items() if now - times[-1] < 60}
        times = self._times.setdefault(address, deque())
        while times and now - times[0] >= 60:
            times.popleft()
        if len(times) >= self._calls:
            wait = max(int(60 - (now - times[0])) + 1, 1)
            raise InputError(f"{self._calls} calls a minute are the limit here: wait {wait} seconds")
        times.append(now)


@dataclass
class Session:
    """What one visitor sees."""

    sentence: str = ""
    results: dict[str, Decoded] = field(default_factory=dict)  # by the trial's name
    words: list[tuple[str, int]] = field(default_factory=list)  # of the output that gaps are cut into
    ctc: CtcRows | None = None
    dag: DagVertices | None = None


class _Calls:
    """What the page's buttons and the JSON endpoint call; what the user can mend becomes a message on the page."""

    def __init__(self, playground: Playground, rate: Rate):
        self._playground, self._rate = playground, rate

    def compare(self, sentence: str, beam: int, passes: int, request: gr.Request) -> Iterator[tuple[str, Session]]:
        """Decodes a sentence by one mode after the other: the table so far, and the session."""
        playground = self._playground
        with _messages():
            self._rate.check(request.client.host)
            playground.check_values({"beam": beam, "passes": passes})
            session = Session(sentence=playground.check(sentence))
        for trial in playground.trials(beam, passes):
            with _messages():
                session.results[trial.name] = playground.decode(session.sentence, trial)
                if trial.name == "ctc":
                    session.ctc = playground.ctc_rows(session.sentence)
                if trial.name == "dag":
                    session.dag = playground.dag_vertices(session.sentence)
            yield markup.table(list(session.results.values())), session

    def fill(self, session: Session, kept: list[int], request: gr.Request) -> str:
        """Takes words out of the output and fills the gaps."""
        with _messages():
            self._rate.check(request.client.host)
            if not session.results:
                raise InputError("no output yet: generate one first")
            removed = [place for place in range(len(session.words)) if place not in kept]
            target = self._playground.with_gaps(session.words, removed)
            return markup.filled(self._playground.fill(session.sentence, target), target)

    def generate(self, sentence: str, mode: str, settings: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        """One sentence by one mode: text, score, tokens, others (with nbest), statistics, seconds, trace."""
        playground = self._playground
        with _messages():
            self._rate.check(request.client.host)
            keywords = playground.check_settings(mode, settings or {})
            trial = Trial("call", mode, mode, keywords, trace=mode in MODES and MODES[mode].traces)
            return playground.as_json(playground.decode(playground.check(sentence), trial))


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OSError, jax.errors.JaxRuntimeError) as error:
        raise gr.Error(message_of(error), duration=None, print_exception=False) from error


def build(playground: Playground, examples: Sequence[str] = (), *, rate: int = 30) -> gr.Blocks:
    """The page.

    Args:
      playground: the model.
      examples: sentences to choose from.
      rate: calls a minute from one address; 0: no limit.
    """
    calls = _Calls(playground, Rate(rate))
    trials = {trial.name: trial for trial in playground.trials()}
    first = next(iter(trials.values()), None)  # a search without a beam
    with gr.Blocks(analytics_enabled=False, title="janus_jax playground") as page:
        state = gr.State(Session())
        gr.Markdown(f"# janus_jax playground\n{_facts(playground)}")
        sentence = gr.Textbox(
            label="sentence", lines=2, max_length=32 * playground.most_tokens, autofocus=True, elem_id="sentence"
        )
        if examples:
            gr.Examples([[one] for one in examples], [sentence], label="examples")
        with gr.Accordion("settings", open=False), gr.Row():
            beam = gr.Slider(1, 10, 5, step=1, label="beam: hypotheses of AR, CTC and DAG")
            passes = gr.Slider(1, 20, 4, step=1, label="passes of mask-predict")
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        table = gr.HTML(elem_id="table")
        inputs, outputs = [sentence, beam, passes], [table, state]
        done = gr.on([button.click, sentence.submit], calls.compare, inputs, outputs, **_MODEL, **_PRIVATE)
        with gr.Tabs():
            for mode, label in _TABS.items():
                if mode in trials:
                    with gr.Tab(label):
                        _view(mode, state, done)
            with gr.Tab("n-best"):
                ranks = gr.HTML(elem_id="nbest")
                done.success(_ranking, state, ranks, **_PRIVATE)
            if playground.filling_mode and first:
                with gr.Tab("Infilling"):
                    _gaps(playground, first, state, done, calls)
        gr.api(calls.generate, api_name="generate", **_MODEL)
    return page


def launch(
    page: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool | None = False,
    inline: bool = False,
) -> str:
    """Serves the page in a thread and returns its address.

    Args:
      page: of `build`.
      host: address to bind to.
      port: None: the first free one from 7860.
      share: also make a public address through Gradio's servers; None: only in a notebook that needs it.
      inline: show the page in the notebook.

    Raises:
      OSError: the port is in use.
    """
    page.queue(max_size=32, api_open=False)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inline=inline,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        app_kwargs={"middleware": [Middleware(Gate)]},
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=markup.STYLE,
    )
    return address


def _facts(playground: Playground) -> str:
    """The model in a line."""
    generator = playground.generator
    count = sum(leaf.size for leaf in jax.tree.leaves(generator.params)) / 1e6
    return (
        f"{count:.1f} million parameters, trained for {', '.join(generator.trained)}. A sentence may have "
        f"{playground.most_tokens} tokens."
    )


def _ranking(session: Session) -> str:
    """The outputs of the searches with a beam."""
    return markup.ranking([one for one in session.results.values() if one.output.others])


def _view(mode: str, state: gr.State, done: Any) -> None:
    """The tab of a mode: what its passes looked like; a slider goes through them where they follow each other."""
    if mode in ("ar", "nar"):
        draw, what = (markup.steps, "step") if mode == "ar" else (markup.refinement, "pass")

        def length(decoded: Decoded) -> int:
            return len(decoded.output.token_scores if mode == "ar" else decoded.output.trace)

        slider = gr.Slider(1, 2, 1, step=1, label=what, interactive=False, elem_id=f"slider-{mode}")
        area = gr.HTML(elem_id=f"view-{mode}")

        def moved(session: Session, count: int) -> str:
            decoded = session.results.get(mode)
            return draw(decoded, count) if decoded else ""

        def last(session: Session) -> tuple[Any, str]:
            decoded = session.results[mode]
            count = length(decoded)
            # A slider from 1 to 1 cannot be drawn.
            shown = gr.Slider(maximum=max(count, 2), value=count, interactive=count > 1)
            return shown, draw(decoded, count)

        done.success(last, state, [slider, area], **_PRIVATE)
        slider.input(moved, [state, slider], area, show_progress="hidden", trigger_mode="always_last", **_PRIVATE)
        return

    area = gr.HTML(elem_id=f"view-{mode}")

    def shown(session: Session) -> str:
        decoded = session.results[mode]
        if mode == "speculative":
            return markup.speculation(decoded)
        if mode == "ctc":
            return markup.ctc(session.ctc, decoded) if session.ctc else ""
        outputs = [one for name, one in session.results.items() if name == "dag_beam"]
        return markup.dag(session.dag, outputs) if session.dag else ""

    done.success(shown, state, area, **_PRIVATE)


def _gaps(playground: Playground, first: Trial, state: gr.State, done: Any, calls: _Calls) -> None:
    """The tab that takes words out of an output and fills the gaps."""
    kept = gr.CheckboxGroup([], label=f"output of {first.label}: take words away", elem_id="words")
    button = gr.Button("Fill the gaps", elem_id="fill")
    area = gr.HTML(elem_id="filled")

    def words(session: Session) -> tuple[Session, Any, str]:
        session.words = playground.words(session.results[first.name].output.tokens)
        choices = [(word, place) for place, (word, _) in enumerate(session.words)]
        return session, gr.CheckboxGroup(choices=choices, value=[place for _, place in choices]), ""

    done.success(words, state, [state, kept, area], **_PRIVATE)
    button.click(calls.fill, [state, kept], area, **_MODEL, **_PRIVATE)
