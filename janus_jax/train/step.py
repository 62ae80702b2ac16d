"""The training step and the evaluation step, as pure functions.

Legend: A micro-batches of a step, B examples of a micro-batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from janus_jax import parallel
from janus_jax.config import Config, objective_terms, scheduled
from janus_jax.model import Janus
from janus_jax.objective.joint import batch_counts, batch_divisors, loss, weight_at
from janus_jax.train.optimizer import learning_rate, make_optimizer
from janus_jax.train.trained import merge_trained, select_trained
from janus_jax.types import Array, Batch, Params, TrainState

Metrics = dict[str, jax.Array]


def init_state(net: Janus, config: Config) -> TrainState:
    """The initial training state. A pure function, so that JAX can trace its shapes."""
    return state_from_params(config, net.init(jax.random.key(config.train.seed)))


def state_from_params(config: Config, params: Params) -> TrainState:
    """The state at step 0 of a run that starts from `params`."""
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    opt_state = make_optimizer(config.optimizer).init(select_trained(params, config))
    return TrainState(jnp.int32(0), params, opt_state, ema)


def abstract_state(net: Janus, config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """The training state as ShapeDtypeStructs with its shardings on a mesh."""
    shapes = jax.eval_shape(lambda: init_state(net, config))
    shardings = parallel.state_shardings(mesh, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def jit_init_state(net: Janus, config: Config, shardings: Any) -> Callable[[], TrainState]:
    """`init_state` compiled for the shardings of a state."""
    return jax.jit(lambda: init_state(net, config), out_shardings=shardings)


def make_train_step(
    net: Janus, config: Config, terms: tuple[str, ...] | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step(state, batch[A, B, ...]) -> (state, metrics)`, to be jitted with the state donated.

    Loss and gradients are those of the whole batch of the step, whatever A is. If the loss or the gradient norm is not
    finite, the parameters don't change and metrics["finite"] is 0. `state.step` increases in any case, because it
    selects the batch.

    Args:
      net: the model.
      config: the configuration of the run.
      terms: names of the loss terms to compute; None: all terms of the objective.
    """
    objective = scheduled(config)
    optimizer = make_optimizer(config.optimizer)
    rate = learning_rate(config.optimizer, config.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)

        def micro_loss(trained: Params, part: Batch, index: jax.Array) -> Any:
            params, rng = merge_trained(state.params, trained, config), jax.random.fold_in(key, index)
            return loss(net, objective, params, part, divisors=divisors, step=state.step, rng=rng, terms=terms)

        trained = select_trained(state.params, config)
        (total, metrics), gradients = _accumulated(jax.value_and_grad(micro_loss, has_aux=True), trained, batch)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        lr = rate(state.step)
        params = merge_trained(state.params, jax.tree.map(lambda p, u: p - lr * u, trained, updates), config)
        updated = TrainState(
            state.step, params, opt_state, _moving_average(config.optimizer.ema_decay, state.step, state.ema, params)
        )
        updated = jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated, state)
        scheduled_weights = {
            f"weight/{name}": weight_at(weight, state.step)
            for name, weight in objective_terms(objective).items()
            if isinstance(weight, tuple)
        }
        metrics |= scheduled_weights | {
            "loss/total": total,
            "grad_norm": norm,
            "learning_rate": lr,
            "finite": finite.astype(jnp.float32),
            "target_tokens": (batch.target[..., 1:] != net.specials.pad).sum().astype(jnp.float32),
        }
        return TrainState(state.step + 1, updated.params, updated.opt_state, updated.ema), metrics

    return train_step


def _accumulated(gradient: Callable[..., Any], params: Params, batch: Batch) -> Any:
    """((total, metrics), gradients) summed over the micro-batches of `batch` [A, B, ...]."""
    count = batch.target.shape[0]
    if count == 1:
        return gradient(params, jax.tree.map(lambda x: x[0], batch), 0)

    def add(carry: Any, part: Any) -> Any:
        return jax.tree.map(jnp.add, carry, gradient(params, *part)), None

    parts = (batch, jnp.arange(count))
    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def _moving_average(decay: float, step: Array, ema: Params | None, params: Params) -> Params | None:
    """The exponential moving average after a step, with decay min(decay, (1 + step) / (10 + step)).

    So the average spans at most about the last tenth of the steps done, and forgets the random start in a short run, too.
    (The warm-up of tf.train.ExponentialMovingAverage with num_updates.)

    optax.incremental_update computes decay * e + (1 - decay) * p. In float32 those two factors don't add up to 1: with
    a decay of 0.9999 the average becomes 1.6e-4 too small. The form below has no such bias.
    """
    if ema is None:
        return None
    rate = jnp.maximum(1.0 - decay, 9.0 / (10.0 + step))
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)


def make_eval_step(net: Janus, config: Config) -> Callable[[Params, Batch], Metrics]:
    """`eval_step(params, batch[B, ...]) -> metrics`: sums over the batch, without dropout.

    `sum/<metric>` is the sum of a metric of `joint.loss`; `weight/<count>` is one of `joint.batch_counts`. To
    evaluate several batches, add both over them, then divide.
    """
    objective = scheduled(config)

    def eval_step(params: Params, batch: Batch) -> Metrics:
        weights = batch_counts(batch, net.config, objective, net.specials.pad)
        ones = {name: jnp.float32(1.0) for name in weights}
        _, metrics = loss(net, objective, params, batch, divisors=ones, step=jnp.int32(config.train.steps))
        return {f"sum/{name}": value for name, value in metrics.items()} | {
            f"weight/{name}": value for name, value in weights.items()
        }

    return eval_step


def jit_train_step(
    net: Janus, config: Config, mesh: Any, shardings: Any, terms: tuple[str, ...] | None = None
) -> Callable[..., Any]:
    """The training step compiled for a mesh: state donated, shardings fixed, batches split over data x fsdp."""
    return jax.jit(
        make_train_step(net, config, terms),
        in_shardings=(shardings, parallel.batch_sharding(mesh, leading=1)),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=compiler_options(config),
    )


def compiler_options(config: Config) -> dict[str, str | bool]:
    """Compiler options for a training step.

    XLA's CPU compiler removes the barriers around rematerialised computations early. Then it merges each of them with
    the first computation of the same values, so that no memory is saved. `xla_disable_hlo_passes` keeps the barriers.
    """
    options: dict[str, str | bool] = {}
    if config.model.remat != "none" and jax.default_backend() == "cpu":
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    if config.train.deterministic:
        options["xla_gpu_deterministic_ops"] = True  # other devices are deterministic and ignore it
    return options


def jit_eval_step(net: Janus, config: Config, mesh: Any) -> Callable[..., Any]:
    """The evaluation step compiled for a mesh."""
    return jax.jit(make_eval_step(net, config), in_shardings=(None, parallel.batch_sharding(mesh)))
