"""From a checkpoint and sentences to sentences."""
