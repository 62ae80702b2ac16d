"""The eight tasks of GLGE (Liu et al. 2021): summaries, headlines, questions, answers, dialogue.

    python -m janus_jax.data --config=configs/glge.py:squadqg_bart
    python -m janus_jax.train --config=configs/glge.py:squadqg_bart --workdir=runs/squadqg
    python -m janus_jax.evaluate --checkpoint=runs/squadqg --task=squadqg --mode=ar \\
      --source=data/glge/easy/squadqg_data/org_data/dev.src --references=data/glge/easy/squadqg_data/org_data/dev.tgt

Presets:
  cnndm, xsum           summaries of news in some sentences, in one
  gigaword, msnews      headlines
  squadqg, msqg         questions for an answer and its text
  coqa                  answers in a conversation
  personachat           dialogue

  Each trains from scratch, with a tokenizer of its own. With _bart, as squadqg_bart, it fine-tunes runs/bart_base, an
  imported BART or a run of configs/bart_janus.py (--config.init_from names another, with its size).

Data: the folders of the benchmark, data/glge/easy/TASK_data/org_data with train.src, train.tgt, dev.src, dev.tgt and
test.src. Other folders and versions: --config.data.train=FOLDER/train --config.data.valid=FOLDER/dev. Sources are cut to 512
tokens, as in the benchmark. Its test targets are not public.

Cost: 20,000 steps of 16,384 tokens, for one accelerator. Scores: not measured, since the data are not at hand.
"""

import dataclasses
import functools

from configs import recipes
from janus_jax.config import default_config, preset
from janus_jax.model.presets import PRESETS

# The most tokens of a target.
TASKS = {
    "cnndm": 128, "gigaword": 64, "xsum": 64, "msnews": 64, "squadqg": 64, "msqg": 64, "coqa": 64, "personachat": 64,
}  # fmt: skip


def _task(task):
    config = default_config()
    config.text.vocab_size = 32_000

    config.data.source = "glge"
    config.data.glge_pieces = task != "gigaword"  # whose # is a digit: killed ## people
    config.data.source_lang = "src"
    config.data.target_lang = "tgt"
    config.data.train = f"data/glge/easy/{task}_data/org_data/train"
    config.data.valid = f"data/glge/easy/{task}_data/org_data/dev"
    config.data.test = ""
    config.data.prepared = f"prepared/glge_{task}"
    config.data.max_source_length = 512
    config.data.max_target_length = TASKS[task]
    config.data.too_long = "cut"
    config.data.tokens_per_batch = 16_384
    config.data.buckets = 6

    config.model.update(dataclasses.asdict(PRESETS["bart_base"]))
    config.model.vocab_size = 0  # the tokenizer's

    recipes.mask_predict(recipes.ar_first(config))
    config.objective.projection_rows = 4096

    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "polynomial"
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0

    config.train.steps = 20_000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000

    # The benchmark's settings.
    config.decode.mode = "ar"
    config.decode.ar.beam = 5 if task == "cnndm" else 4
    config.decode.ar.lenpen = 1.2 if task == "cnndm" else 1.0
    config.decode.ar.min_length = 45 if task == "cnndm" else 0
    config.decode.ar.max_length_a = 0.0
    config.decode.ar.max_length_b = 110 if task == "cnndm" else TASKS[task]
    config.decode.ar.no_repeat_ngram = 3
    return config


def _from_bart(task):
    config = _task(task)
    config.init_from = "runs/bart_base"
    config.data.prepared = f"prepared/glge_{task}_bart"
    # The AR half is good already: NAR rows learn from the first step.
    config.objective.ar_first = 0.0
    config.optimizer.learning_rate = 5e-5
    return config


def get_config(name="squadqg"):
    """The preset named after the colon of --config=configs/glge.py:squadqg."""
    scratch = {task: functools.partial(_task, task) for task in TASKS}
    return preset(name, scratch | {f"{task}_bart": functools.partial(_from_bart, task) for task in TASKS})
