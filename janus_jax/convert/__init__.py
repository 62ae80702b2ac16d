"""Names and layouts of other programs' checkpoints; averages of our own."""

from janus_jax.convert.fairseq import model_config_from_released, params_from_released, params_to_released

__all__ = ["model_config_from_released", "params_from_released", "params_to_released"]
