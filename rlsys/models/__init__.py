"""Models: loading, token log-probabilities (the only shift by one), tiny models built on the spot, warm-up."""
