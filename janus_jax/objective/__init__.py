"""The training losses: `joint.loss` of one micro-batch, `joint.denominators` of the step that it belongs to."""
