"""Attention and output layers for packed rows: PyTorch functions without knowledge of a run."""
