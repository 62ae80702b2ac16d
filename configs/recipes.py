"""How the halves of a model are trained together, for the experiments to share. Not an experiment itself.

The released recipe, joint training with fixed weights from the first step, stays in the presets `released`. The recipes
here were better on two small models and one text (benchmarks/study.py, multi30k_deen.py); elsewhere that is a guess.
"""


def ar_first(config):
    """AR alone for the first third of the steps, then the joint loss, in which AR teaches and is not taught.

    AR learns first where in the source to look, and the other rows start from there. Steps of AR alone cost a fraction of
    joint ones. The AR half reads one stream of rows (model.ar_stream "content"), which learns faster than queries. Its
    weight is so high that it learns as if it were alone: the optimizer's steps follow the ratio of the terms, not their
    size.
    """
    config.objective.ar_first = 1 / 3
    config.objective.weights.ar = 10.0
    config.objective.stop_gradient.kl_ar_nar = "ar"
    config.objective.stop_gradient.kl_ar_aux = "ar"
    config.objective.stop_gradient.kl_ar_ctc = "ar"
    config.model.ar_stream = "content"
    return config


def ctc(config):
    """AR and CTC instead of AR and mask-predict.

    Two CTC rows a source token read its encoder state, at positions of their own. docs/recipes.md has the figures; how much
    of them is due to these two choices is not measured. There is no divergence, so that CTC rows may have distilled targets.
    """
    config.objective.name = "janus_ctc"
    config.objective.weights.kl_ar_ctc = 0.0
    config.model.ctc_ratio = 2.0
    config.model.ctc_input = "encoder"
    config.model.ctc_positions = "own"
    config.decode.mode = "ctc"
    return config


def dag(config):
    """AR and DAG instead of AR and mask-predict: as many rows as `ctc` has, and no divergence either.

    Published models have four to eight rows a source token. Two are for tasks whose targets are no longer than their sources.
    """
    config.objective.name = "janus_dag"
    config.objective.weights.kl_ar_dag = 0.0
    config.model.dag_ratio = 2.0
    config.decode.mode = "dag"
    return config


def ar_then_ctc(config):
    """AR alone for half of the steps, then AR and CTC, AR in every second step: `from_teacher` in one run."""
    return _half_ar(ctc(ar_first(config)))


def ar_then_dag(config):
    """The same with DAG instead of CTC."""
    return _half_ar(dag(ar_first(config)))


def _half_ar(config):
    config.objective.ar_first = 0.5
    config.objective.weights.ar = 2.0
    config.objective.ar_every = 2
    return config


def mask_predict(config):
    """AR and mask-predict without AUX rows; AR teaches NAR.

    Both halves then read the same targets, raw or distilled. For NAR rows with targets of their own, set the weight
    kl_ar_nar to 0.
    """
    config.objective.name = "janus"
    config.objective.weights.nar = 1.0
    for name in ("aux", "kl_nar_aux", "kl_ar_aux"):
        config.objective.weights[name] = 0.0
    config.objective.stop_gradient.kl_ar_nar = "ar"
    config.decode.mode = "nar"
    return config


def from_teacher(config, teacher):
    """Goes on from a finished AR model: its half learns in every second step, beside a parallel half that begins.

    The targets of the parallel rows may be the teacher's translations (docs/data.md, distilled data).
    """
    config.init_from = teacher
    config.objective.weights.ar = 2.0
    config.objective.ar_every = 2
    config.model.ar_stream = "content"
    return config
