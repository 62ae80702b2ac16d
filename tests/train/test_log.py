import json

import pytest

from janus_jax.train.log import IntervalMeans


def step(loss):
    return {"loss/total": loss, "nll/ar": 2 * loss, "grad_norm": 1.0, "learning_rate": 0.5, "weight/nar": 0.25}


def test_a_record_holds_the_means_of_its_interval():
    window = IntervalMeans()
    for loss in (3.0, 1.0, 5.0):
        window.add(step(loss))
    assert window.means() == {"loss/total": 3.0, "nll/ar": 6.0, "grad_norm": 1.0}
    window.add(step(7.0))
    assert window.means()["loss/total"] == 7.0


def test_a_figure_that_some_steps_lack_is_the_mean_of_the_others():
    window = IntervalMeans()
    window.add(step(3.0))
    window.add(step(1.0) | {"loss/aux": 4.0})
    assert window.means() == {"loss/total": 2.0, "nll/ar": 4.0, "grad_norm": 1.0, "loss/aux": 4.0}


def test_an_interval_without_steps_has_no_means():
    assert IntervalMeans().means() == {}


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_an_interval_survives_a_resume(cut):
    losses = [0.1, 0.2, 0.7]
    whole, first = IntervalMeans(), IntervalMeans()
    for loss in losses:
        whole.add(step(loss))
    for loss in losses[:cut]:
        first.add(step(loss))
    resumed = IntervalMeans(**json.loads(json.dumps(first.state())))
    for loss in losses[cut:]:
        resumed.add(step(loss))
    assert resumed.means() == whole.means()
