"""Three small tasks in English: a small pretrained model, fine-tuned on each, beside the same model from scratch.

    python -m janus_jax.data --config=configs/bart_tiny_tasks.py:headline
    python -m janus_jax.train --config=configs/bart_tiny_tasks.py:headline --workdir=runs/headline
    python -m janus_jax.train --config=configs/bart_tiny_tasks.py:headline_scratch --workdir=runs/headline_scratch

Presets:
  headline      descriptions of software to their one-line summaries: 29 thousand pairs
  wikidesc      first paragraphs about a thing to its short description: 7 thousand pairs
  qg            passages to a question about them: 800 pairs

  Each trains AR, mask-predict and CTC from runs/bart_tiny, a run of configs/bart_tiny_entext.py (--config.init_from names
  another). With _dag, as headline_dag, AR and DAG; with _scratch, as headline_scratch or headline_dag_scratch, from random
  parameters, with only the tokenizer of that run (--config.text.model names another).

Data: data/headline/train.tsv and so on, a line each: source TAB target. Every twentieth pair is held out for validation,
which ends the run when its loss no longer falls (train.patience), so that data/headline/valid.tsv can be scored afterwards.

Cost: wikidesc took 46 minutes of one core that had other work too (2400 steps, 12 evaluations), headline takes hours.
Scores, 1,000 pairs, ROUGE-L, two seeds (docs/pretraining.md):
  wikidesc              AR beam 5 43.2, 43.4; mask-predict in 10 passes 36.5, 36.7; CTC in one pass 21.8, 23.7
  wikidesc_scratch      AR beam 5 29.2, 29.8; mask-predict in 10 passes 25.1, 25.8; CTC in one pass 18.8, 19.3
  wikidesc_dag          AR beam 5 44.4, 43.4; DAG lookahead 28.7, 28.2
  wikidesc_dag_scratch  AR beam 5 32.5, 32.1; DAG lookahead 24.0, 24.3
  headline              one seed: AR beam 5 34.1; mask-predict in 10 passes 30.2; CTC in one pass 16.9
  headline_dag          one seed: AR beam 5 34.1; DAG lookahead 30.2
"""

import dataclasses
import functools
from typing import NamedTuple

from configs import recipes
from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS


class Task(NamedTuple):
    """What differs between the tasks."""

    source_length: int  # in tokens; the first sentences of a description say what the thing is
    target_length: int
    ratio: float  # rows of CTC or DAG a source token
    tokens_per_batch: int
    interval: int  # steps between evaluations, about a pass over the pairs


TASKS = {
    "headline": Task(64, 26, 0.5, 2048, 500),
    "wikidesc": Task(64, 26, 0.5, 2048, 200),
    "qg": Task(512, 40, 0.25, 4096, 50),
}


def _task(task):
    config = default_config()
    config.data.source = "tsv"
    config.data.train = f"data/{task}/train.tsv"
    config.data.valid = ""
    config.data.test = f"data/{task}/valid.tsv"
    config.data.hold_out = 20
    config.data.prepared = f"prepared/{task}"
    config.data.max_source_length = TASKS[task].source_length
    config.data.max_target_length = TASKS[task].target_length
    config.data.too_long = "cut"
    config.data.tokens_per_batch = TASKS[task].tokens_per_batch
    config.data.buckets = 2

    config.model.update(dataclasses.asdict(PRESETS["bart_tiny"]))

    recipes.mask_predict(config)
    config.objective.name = "janus_all"
    config.objective.weights.kl_ar_ctc = 0.0
    config.objective.projection_rows = 1024
    config.model.ctc_ratio = TASKS[task].ratio
    config.model.ctc_input = "encoder"
    config.model.ctc_positions = "own"
    config.data.mask_sampler = "uniform"  # one pass starts from masks alone

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"  # does not depend on the length, which patience decides
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.99

    config.init_from = "runs/bart_tiny"

    config.train.steps = 20_000
    config.train.patience = 3
    config.train.log_every = 50
    config.train.eval_every = TASKS[task].interval
    config.train.checkpoint_every = TASKS[task].interval
    config.train.keep_last = 1
    config.train.eval_sentences = 400
    return config


def _dag(task):
    config = recipes.dag(_task(task))
    config.model.dag_ratio = config.model.ctc_ratio
    config.model.ctc_ratio = 0.0
    return config


def _scratch(make, task):
    config = make(task)
    config.init_from = ""
    config.text.model = "runs/bart_tiny"
    return config


def get_config(name="headline"):
    """The preset named after the colon of --config=configs/bart_tiny_tasks.py:headline."""
    presets = {}
    for task in TASKS:
        for family, make in (("", _task), ("_dag", _dag)):
            presets[f"{task}{family}"] = functools.partial(make, task)
            presets[f"{task}{family}_scratch"] = functools.partial(_scratch, make, task)
    return preset(name, presets)
