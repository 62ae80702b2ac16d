"""Files that an exported model carries with it: PyTorch code for transformers, which imports nothing of this package."""
