"""Models as training uses them: loading and building, token log-probabilities and values, packing, adapters.

The shift by one (a token's probability comes from the state before it) happens here and nowhere else. What runs models
(engines, workers) and what is computed from their numbers (losses, advantages) does not belong here.
"""
