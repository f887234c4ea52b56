"""Accuracy, mean@k and pass@k on held-out prompts, with confidence intervals. Printing them belongs to `commands`."""
