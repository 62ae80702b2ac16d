"""The training losses: `loss` for one micro-batch, `denominators` for the step that it belongs to."""

from janus_jax.objective.joint import active_terms, denominators, loss, streams_of, weight_at

# Which terms each objective has is `config.objective_terms`; all share one computation.
OBJECTIVES = {"ar": loss, "cmlm": loss, "janus": loss, "ctc": loss, "janus_ctc": loss}

__all__ = ["OBJECTIVES", "active_terms", "denominators", "loss", "streams_of", "weight_at"]
