"""Drafts of CTC and DAG rows continue from where the emitted tokens most likely end, by enumeration of all alignments and paths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.decode.search.drafters import Emitted
from janus_jax.decode.search.emission_drafts import CtcDrafts, DagDrafts
from janus_jax.types import Specials

SPECIALS = Specials()
TOKENS, BLANK = 4, 3  # ids 5, 6, 7 and the blank
ROWS, LIMIT, WIDTH = 5, 6, 4


def emitted_of(prefixes):
    tokens = np.full((len(prefixes), LIMIT), SPECIALS.pad, np.int32)
    for row, prefix in zip(tokens, prefixes, strict=True):
        row[: len(prefix)] = prefix
    lengths = np.array([len(prefix) for prefix in prefixes], np.int32)
    return Emitted(tokens, lengths, np.zeros(len(prefixes), bool))


def looked_up(log_probs):
    """A function as `scores_fn`, of log-probabilities [B, R, TOKENS] of ids 5, 6, 7 (and the blank)."""
    return lambda tokens: jnp.take_along_axis(log_probs, jnp.clip(tokens - 5, 0, 2)[:, None], axis=2)


def collapsed(labels):
    merged = [label for label, _ in itertools.groupby(labels)]
    return [label + 5 for label in merged if label != BLANK]


def ctc_by_enumeration(log_probs, count, prefix):
    """The tokens behind a prefix, for one sentence of `count` rows."""
    best = log_probs[:count].argmax(-1)
    values = []
    for row in range(count):
        label = blank = -np.inf
        for alignment in itertools.product(range(TOKENS), repeat=row + 1):
            if collapsed(alignment) == prefix:
                score = sum(log_probs[i, label_] for i, label_ in enumerate(alignment))
                if alignment[-1] == BLANK:
                    blank = np.logaddexp(blank, score)
                else:
                    label = np.logaddexp(label, score)
        behind = log_probs[range(row + 1, count), best[row + 1 :]].sum()
        values.append((np.logaddexp(label, blank) + behind, label >= blank))
    if all(value == -np.inf for value, _ in values):
        return []
    row = int(np.argmax([value for value, _ in values]))
    before = [prefix[-1] - 5] if values[row][1] else []
    return collapsed([*before, *best[row + 1 :]])[len(before) :]


@jax.jit
def ctc_drafts(log_probs, real, nothing, emitted):
    """The drafts before any token and behind those that were emitted, of log-probabilities [B, R, TOKENS]."""
    labels = log_probs[..., :BLANK]
    best = jnp.argmax(labels, axis=-1) + 5
    drafter = CtcDrafts(looked_up(log_probs), best, labels.max(-1), log_probs[..., BLANK], real, SPECIALS)
    start = drafter.start()
    behind = drafter.block(drafter.after(start, emitted, None), emitted, WIDTH)
    return drafter.block(start, nothing, WIDTH), behind


@pytest.mark.parametrize("seed", range(6))
def test_ctc_drafts_continue_behind_the_likeliest_row(seed):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.full(TOKENS, 0.5), (8, ROWS))).astype(np.float32)
    counts = rng.integers(3, ROWS + 1, 8)
    prefixes = [rng.integers(5, 8, rng.integers(1, 4)).tolist() for _ in range(8)]
    real = np.arange(ROWS) < counts[:, None]
    start, behind = ctc_drafts(log_probs, real, emitted_of([[]] * 8), emitted_of(prefixes))
    # Before any token: the best path itself.
    wanted = [collapsed(log_probs[i, :n].argmax(-1)) for i, n in enumerate(counts)]
    assert drafts(*start) == [[*tokens, SPECIALS.eos][:WIDTH] for tokens in wanted]
    wanted = [ctc_by_enumeration(log_probs[i], counts[i], prefix) for i, prefix in enumerate(prefixes)]
    assert drafts(*behind) == [[*tokens, SPECIALS.eos][:WIDTH] for tokens in wanted]
    assert any(wanted), "some draft must have tokens"


def drafts(tokens, real):
    return [row[flags].tolist() for row, flags in zip(np.asarray(tokens)[:, 0], np.asarray(real)[:, 0], strict=True)]


def dag_by_enumeration(links, log_probs, prefix):
    """The log-probability that the last token of a prefix stands at each vertex of one graph."""
    spread = np.full(len(links), -np.inf)
    for path in itertools.combinations(range(1, len(links) - 1), len(prefix)):
        steps = zip((0, *path), path, strict=False)
        score = sum(links[a, b] for a, b in steps) + sum(
            log_probs[vertex, token - 5] for vertex, token in zip(path, prefix, strict=True)
        )
        spread[path[-1]] = np.logaddexp(spread[path[-1]], score)
    return spread


@jax.jit
def dag_drafts(links, log_probs, best, gains, beginnings):
    """The state after the longest beginning was read at once, its drafts, and the state after one beginning by one."""
    last = jnp.full(len(links), links.shape[1] - 1)
    drafter = DagDrafts(looked_up(log_probs), links, best, gains, last, SPECIALS)
    at_once = drafter.after(drafter.start(), beginnings[-1], None)
    steps = functools.reduce(lambda state, emitted: drafter.after(state, emitted, None), beginnings, drafter.start())
    return at_once.log_probs, drafter.block(at_once, beginnings[-1], WIDTH), steps.log_probs


@pytest.mark.parametrize("seed", range(4))
def test_dag_drafts_follow_the_links_from_the_likeliest_vertex(seed):
    rng = np.random.default_rng(seed)
    count = 7
    links = np.where(np.triu(np.ones((count, count)), 1), rng.gamma(0.5, size=(6, count, count)) + 1e-3, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        links = np.log(links / links.sum(-1, keepdims=True)).astype(np.float32)
    links = np.nan_to_num(links, nan=-np.inf, neginf=-np.inf)
    log_probs = np.log(rng.dirichlet(np.full(3, 0.4), (6, count))).astype(np.float32)
    # The ends emit bos and eos alone.
    log_probs[:, [0, -1]] = -np.inf
    best = log_probs.argmax(-1) + 5
    gains = np.where(np.isin(np.arange(count), [0, count - 1]), 0.0, log_probs.max(-1))
    prefixes = [rng.integers(5, 8, rng.integers(1, 4)).tolist() for _ in range(6)]
    beginnings = [emitted_of([prefix[:length] for prefix in prefixes]) for length in range(1, 4)]
    state, drafted, steps = jax.device_get(dag_drafts(links, log_probs, best, gains, beginnings))
    for i, prefix in enumerate(prefixes):
        spread = dag_by_enumeration(links[i], log_probs[i], prefix)
        np.testing.assert_allclose(state[i], spread - spread.max(), atol=1e-4)
        at, wanted = int(spread.argmax()), []
        while len(wanted) < WIDTH and (not wanted or wanted[-1] != SPECIALS.eos):
            at = int((links[i, at] + gains[i]).argmax())
            wanted.append(SPECIALS.eos if at == count - 1 else int(best[i, at]))
        assert drafts(*drafted)[i] == wanted
    # Token by token it is the same as at once.
    np.testing.assert_allclose(steps, state, atol=1e-4)


def test_a_prefix_that_the_rows_cannot_give_still_has_a_draft():
    log_probs = np.broadcast_to(np.log([0.25, 0.25, 0.25, 0.25 / np.e]).astype(np.float32), (8, ROWS, TOKENS))
    two = np.broadcast_to(np.arange(ROWS) < 2, (8, ROWS))
    _, behind = ctc_drafts(log_probs, two, emitted_of([[]] * 8), emitted_of([[5, 6, 7]] * 8))
    assert drafts(*behind) == [[SPECIALS.eos]] * 8
