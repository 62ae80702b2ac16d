"""Files that are copied into an hf export: PyTorch code for transformers, which imports nothing of this package."""
