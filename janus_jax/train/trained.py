"""The parameters that a run trains: all of them, or those whose names match `train.only`.

CTC's blank is a row of the token table. It has a name of its own here, so that it can be trained while the table, which
the AR half reads, stays as it is.
"""

import re

import jax

from janus_jax.config import Config, ConfigError
from janus_jax.types import Params

TABLE, BLANK = "embed_tokens/embedding", "embed_tokens/blank"


def select_trained(params: Params, config: Config) -> Params:
    """The trained parameters of a model: the same tree, or with `train.only` a dict from name to array.

    Raises:
      ConfigError: no parameter's name matches `train.only`.
    """
    if not config.train.only:
        return params
    named = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    pattern = re.compile(config.train.only)
    chosen = {name: leaf for name, leaf in named.items() if pattern.search(name)}
    if config.model.ctc_ratio and pattern.search(BLANK) and TABLE not in chosen:  # the whole table holds the blank
        chosen[BLANK] = named[TABLE][config.model.vocab_size]
    if not chosen:
        examples = list(named)[:: max(1, len(named) // 6)]
        raise ConfigError(
            f"config.train.only: no parameter's name matches {config.train.only!r}; some names: {', '.join(examples)}"
        )
    return chosen


def merge_trained(params: Params, trained: Params, config: Config) -> Params:
    """The parameters `params`, in which those of `select_trained` are replaced."""
    if not config.train.only:
        return trained

    def leaf(path: tuple, old: jax.Array) -> jax.Array:
        name = _name(path)
        if name == TABLE and BLANK in trained:
            return old.at[config.model.vocab_size].set(trained[BLANK])
        return trained.get(name, old)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
