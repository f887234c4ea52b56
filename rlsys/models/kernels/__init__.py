"""Attention, output layer and linear layers for packed rows: PyTorch functions that know nothing of a run.

Which of them a model gets is decided one folder up.
"""
