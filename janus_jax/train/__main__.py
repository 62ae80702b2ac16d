"""Trains a model: `python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen`.

Any setting can be overridden: `--config.optimizer.learning_rate=1e-3`. Settings that shaped the prepared data (languages,
tokenizer, longest lengths) are taken from it, and the model's size from the checkpoint of init_from. The same command
resumes a run that stopped.
SIGTERM to any process of the run, or SIGHUP (its terminal was closed), saves a checkpoint and ends the run. Exit status 3: a
loss or gradient was not finite (see train.max_bad_steps); 4: another process of the run is lost.
"""

import os
import sys
from collections.abc import Sequence, Set

import jax
import ml_collections
from absl import flags

from janus_jax import command_line, parallel, processes
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import Config, ConfigError, resolve
from janus_jax.data import DataError, adopt
from janus_jax.processes import Rendezvous
from janus_jax.train.dry_run import dry_run
from janus_jax.train.initial import adopt_model
from janus_jax.train.loop import LostProcessError, NonFiniteLossError, train_or_stop
from janus_jax.train.profile import profiled_steps


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (default: those of the process); returns the exit status, see `command_line`."""
    mistakes = (DataError, CheckpointError)
    overridden: set[str] = set()

    def adjust(config: ml_collections.ConfigDict, names: frozenset[str]) -> str:
        overridden.update(names)
        return adopt(config, names)

    def body(config: Config, values: flags.FlagValues) -> int:
        return _train(config, values, overridden)

    return command_line.run(
        argv, module="janus_jax.train", doc=__doc__, define=_define, body=body, mistakes=mistakes, adjust=adjust
    )


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
    flags.DEFINE_string("profile", "", "FIRST:LAST step to trace, into the work directory.", flag_values=values)
    flags.DEFINE_integer(
        "status_when_stopped",
        0,
        "Exit status after SIGTERM or SIGHUP.",
        lower_bound=0,
        upper_bound=255,
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for a run of several processes.", flag_values=values
    )
    flags.DEFINE_integer("processes", 0, "Number of processes of the run.", flag_values=values)
    flags.DEFINE_integer("process", -1, "Index of this process, from 0.", flag_values=values)
    flags.DEFINE_bool("allow_changes", False, "Resume a run although its settings differ.", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "Only report what training would take; write nothing.", flag_values=values)


def _train(config: Config, values: flags.FlagValues, overridden: Set[str]) -> int:
    profile = profiled_steps(values.profile)
    parallel.start(rendezvous=Rendezvous(values.coordinator, values.processes, values.process))
    # Not before: the checkpoint is read by JAX, which must know all processes first.
    with processes.fail_together():
        note = adopt_model(values.config, overridden, values.workdir)
    if note:
        config = resolve(values.config)
        if jax.process_index() == 0:
            print(note, file=sys.stderr)
    if values.dry_run:
        if profile:
            raise ConfigError("--profile: a dry run trains no step to trace; leave one of the two flags out")
        dry_run(config)
        return 0
    try:
        _, stopped = train_or_stop(config, values.workdir, allow_changes=values.allow_changes, profile=profile)
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except LostProcessError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(4)  # at exit JAX would wait for processes that never come
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not processes.out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["out of memory"])[0][:200]
        raise ConfigError(
            f"the run does not fit into memory ({reason}); lower config.data.tokens_per_batch (now {config.data.tokens_per_batch}) and "
            "add --allow_changes: the run resumes from its newest checkpoint. Or train a smaller model in another --workdir. --dry_run "
            "says what a step takes"
        ) from error
    if jax.process_index() == 0 and not stopped:
        print(f"finished: {values.workdir}")
    return values.status_when_stopped if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
