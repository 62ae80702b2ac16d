"""transformers, set up for the tests of this package."""

import sys

import pytest


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
