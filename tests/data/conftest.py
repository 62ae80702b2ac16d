"""A small prepared corpus that the tests of the data package share."""

import dataclasses

import pytest

from janus_jax import config as config_lib
from janus_jax import data


def small_config(directory, **changes):
    """A config of a small demo corpus; `changes` go to its data group."""
    settings = config_lib.default_config()
    settings.text.vocab_size = 600
    settings.data.update(
        {"prepared": str(directory), "demo_sizes": (700, 60, 40), "tokens_per_batch": 512, "buckets": 3, **changes}
    )
    settings.train.accumulation = 2
    return config_lib.resolve(settings)


def with_data(config, **changes):
    """The config with some of its data settings replaced."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "demo"
    config = small_config(directory)
    data.prepare(config, log=lambda _: None)
    return data.Prepared.open(directory, config)
