"""Names and layouts of other programs' checkpoints."""
