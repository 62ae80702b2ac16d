"""transformers, set up for the tests of this package, and the exports that several modules read."""

import dataclasses
import functools
import sys

import pytest

from janus_jax.config import ModelConfig
from janus_jax.convert import export_model, fairseq, fitting
from tests import tiny
from tests.convert import foreign, parallel_models


@pytest.fixture(autouse=True, scope="package")
def _shapes_once():
    """Traces the shapes of each architecture once; most tests import or make a foreign checkpoint."""
    shapes = functools.cache(fairseq.released_shapes)
    same = {name: getattr(ModelConfig(), name) for name in tiny.SAME_PARAMETERS}
    with pytest.MonkeyPatch.context() as patch:
        for module in (fitting, foreign):
            patch.setattr(
                module,
                "released_shapes",
                lambda config, specials: dict(shapes(dataclasses.replace(config, **same), specials)),
            )
        yield


@pytest.fixture(scope="session")
def transformers(tmp_path_factory):
    """The library, on one thread, with a temporary cache of remote code. One cache serves all tests, since Python keeps the
    package that transformers makes of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        # An earlier test may have loaded the package from another cache, the one of the documents' tests for example.
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)
        yield transformers
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bpe():
    return foreign.byte_bpe()


@pytest.fixture(scope="session")
def export_of(bpe, tmp_path_factory, transformers):
    """A function: name in `parallel_models.ARCHITECTURES` -> (checkpoint, export, network, parameters, PyTorch model), made
    once."""

    @functools.cache
    def export_of(name):
        folder = tmp_path_factory.mktemp("parallel")
        net, params = parallel_models.write(folder / "run", bpe, **parallel_models.ARCHITECTURES[name])
        export_model(folder / "run", "hf", folder / "hf")
        return folder / "run", folder / "hf", net, params, parallel_models.load(folder / "hf")

    return export_of
