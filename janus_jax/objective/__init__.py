"""The training losses: `joint.loss` of one micro-batch, `joint.batch_divisors` of the step that it belongs to."""
