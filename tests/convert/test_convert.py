"""Conversion to released names and back; averages of checkpoints."""

import jax
import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.config import resolve
from janus_jax.convert import params_from_released, params_to_released
from janus_jax.convert.__main__ import main
from tests import tiny


def test_released_names_and_back():
    net, params = tiny.model()
    released = params_to_released(params, net.config)
    assert released["decoder.layers.1.encoder_attn.q_proj.weight"].shape == (16, 16)
    assert released["encoder.layers.0.fc1.weight"].shape == (32, 16)  # [out, in]
    assert released["encoder.embed_tokens.weight"].shape == (tiny.VOCAB, 16)  # without vocabulary padding
    back = params_from_released(released, net.config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert tiny.largest_difference(back, params) == 0.0


def test_a_copy_of_the_embedding_that_differs_is_refused():
    net, params = tiny.model()
    released = params_to_released(params, net.config)
    released["decoder.output_projection.weight"] = released["encoder.embed_tokens.weight"] + 1
    with pytest.raises(ValueError, match="one shared embedding"):
        params_from_released(released, net.config)


def test_average_on_the_command_line(tmp_path, capsys):
    _, params = tiny.model()
    config = resolve({"model": {"vocab_size": tiny.VOCAB}})
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for step, factor in ((1, 5.0), (2, 1.0), (3, 3.0)):
        scaled = jax.tree.map(lambda p, f=factor: f * p, params)
        checkpoint.write(run / "checkpoints" / str(step), scaled, config, b"tokens", {"step": step, "data": "0123"})
    output = tmp_path / "average"
    assert main(["average", f"--checkpoint={run}", "--last=2", f"--output={output}"]) == 0
    loaded = checkpoint.load(output)
    assert (loaded.step, loaded.about["of_steps"], loaded.tokenizer) == (3, [2, 3], b"tokens")
    assert loaded.about["data"] == "0123"
    np.testing.assert_allclose(
        loaded.params["embed_tokens"]["embedding"], 2 * params["embed_tokens"]["embedding"], rtol=1e-6
    )
    assert main(["average", f"--checkpoint={run}", "--last=9", f"--output={tmp_path / 'x'}"]) == 2
    assert "lower --last" in capsys.readouterr().err
    assert main(["average", f"--checkpoint={run}", "--last=2", f"--output={output}"]) == 2
    assert "exists already" in capsys.readouterr().err
