"""How the halves of a model are trained together, for the experiments to share. Not an experiment itself.

The released recipe, joint training with fixed weights from the first step, stays in the experiments' presets `released`. What
makes these better was measured on two small models and one text (benchmarks/study.py, multi30k_deen.py; README); elsewhere it is a guess.
"""


def ar_first(config):
    """AR alone for the first third of the steps, then the joint loss, in which AR teaches and is not taught.

    What AR learns first, above all where in the source to look, the other rows find ready; steps of AR alone cost a fraction of
    joint ones. The AR half reads one stream of rows (model.ar_stream "content"), which learns faster than queries, and its weight
    is so high that it learns as if it were alone: the optimizer's steps follow the ratio of the terms, not their size.
    """
    o = config.objective
    o.ar_first, o.weights.ar = 1 / 3, 10.0
    for divergence in ("kl_ar_nar", "kl_ar_aux", "kl_ar_ctc"):
        o.stop_gradient[divergence] = "ar"
    config.model.ar_stream = "content"
    return config


def ctc(config):
    """AR and CTC instead of AR and mask-predict: two CTC rows a source token."""
    config.objective.name, config.model.ctc_ratio = "janus_ctc", 2.0
    config.decode.mode = "ctc"
    return config
