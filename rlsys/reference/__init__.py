"""Reference workers: a frozen policy that returns per-token log-probabilities."""
