"""The commands of the pages, chain "playground": a program calls the JSON endpoint."""

import pytest

from janus_jax.decode import Generator
from janus_jax.play.playground import Playground
from tests.docs.commands import run_chain


@pytest.fixture
def served(desk, monkeypatch):
    """The playground of the model on the desk; a client of the address on the page reaches it."""
    page = pytest.importorskip("janus_jax.play.page", reason="gradio is not installed (requirements-play.txt)")
    gradio_client = pytest.importorskip("gradio_client")
    blocks = page.build(Playground(Generator.from_checkpoint(desk / "runs/mine")))
    address = page.launch(blocks)
    client = gradio_client.Client
    monkeypatch.setattr(gradio_client, "Client", lambda _: client(address, verbose=False))
    yield
    blocks.close(verbose=False)


@pytest.mark.usefixtures("served")
def test_commands_run(desk, monkeypatch, capsys):
    run_chain("playground", desk, monkeypatch)
    *_, answer, others = capsys.readouterr().out.splitlines()
    [output] = Generator.from_checkpoint(desk / "runs/mine").generate(["un gato"], mode="ar", beam=4, nbest=2)
    assert output.text in answer
    assert others == str([one.text for one in output.others])
