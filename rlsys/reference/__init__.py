"""The reference: frozen copies of the policy, in workers of their own, that return per-token log-probabilities.

A policy with adapters needs none of this: it is its own reference without its adapter (`learner.policy_services`).
"""
