"""Both searches, with the released rules, against every decode of the released code that carries none of its faults."""

import pathlib

import jax
import numpy as np
import pytest

from janus_jax.config import DecodeConfig
from janus_jax.convert.fairseq import model_config_from_released, params_from_released
from janus_jax.decode.generator import MODES, Generator
from janus_jax.model import Janus
from janus_jax.types import Specials

GOLDEN = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "golden"
SCORE = 2e-5


@pytest.fixture(params=["golden_mt_1", "golden_mt_3"], scope="module")
def golden(request):
    path = GOLDEN / f"{request.param}.npz"
    if not path.exists():
        pytest.skip("golden arrays are not beside this checkout")
    arrays = dict(np.load(path))
    released = {name.removeprefix("param/"): a for name, a in arrays.items() if name.startswith("param/")}
    config = model_config_from_released(released, 4)
    net = Janus(config, Specials(mask=3))
    return arrays, Generator(net, params_from_released(released, config), None)


def _compare(arrays, name, tokens, lengths, scores, token_scores):
    """tokens, token_scores [..., L], lengths and scores [...] against the golden arrays, padded with -1 and NaN."""
    expected = arrays[f"{name}_tokens"]
    width = expected.shape[-1]
    real = np.arange(tokens.shape[-1]) < np.asarray(lengths)[..., None]
    tokens = np.where(real, tokens, -1)
    assert (tokens[..., width:] == -1).all(), name
    np.testing.assert_array_equal(tokens[..., :width], expected, err_msg=name)
    np.testing.assert_allclose(scores, arrays[f"{name}_score"], atol=SCORE, err_msg=name)
    here = np.where(real, token_scores, np.nan)[..., :width]
    np.testing.assert_allclose(here, arrays[f"{name}_posscores"], atol=SCORE, err_msg=name)


EVERY_BEAM = [1, pytest.param(4, marks=pytest.mark.slow), 5]
QUICK = [(0, 5), (4, 3), (10, 1), (10, 3)]
EVERY_NAR = [
    pytest.param(n, k, marks=[] if (n, k) in QUICK else pytest.mark.slow) for n in (0, 1, 4, 10) for k in (1, 3, 5)
]


@pytest.mark.parametrize("beam", EVERY_BEAM)
def test_beam_search_equals_the_released_one_without_its_cache(golden, beam):
    arrays, generator = golden
    decode = DecodeConfig(rules="released", beam=beam, max_length_a=0.0, max_length_b=40)
    with jax.default_matmul_precision("highest"):
        found = MODES["ar"](generator, arrays["in/src_tokens"].astype(np.int32), decode)
    _compare(arrays, f"dec/ar_beam{beam}_full", found.tokens, found.lengths, found.scores, found.token_scores)


@pytest.mark.parametrize(("iteration", "length_beam"), EVERY_NAR)
def test_mask_predict_equals_the_released_one_without_its_early_stop(golden, iteration, length_beam):
    arrays, generator = golden
    decode = DecodeConfig(mode="nar", rules="released", passes=iteration + 1, length_beam=length_beam)
    with jax.default_matmul_precision("highest"):
        found = MODES["nar"](generator, arrays["in/src_tokens"].astype(np.int32), decode)
    front = ((0, 0), (1, 0))  # the released arrays keep bos, at score 0
    _compare(
        arrays,
        f"dec/nar_iter{iteration}_lb{length_beam}_force",
        np.pad(found.tokens[:, 0], front),
        found.lengths[:, 0] + 1,
        found.scores[:, 0],
        np.pad(found.token_scores[:, 0], front),
    )
