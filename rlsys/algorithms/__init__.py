"""The mathematics of a step as pure torch functions, and an algorithm's requirements of a run.

Advantages, policy losses, corrections, KL estimators, aggregation, the value loss. Each kind is a package with a
registry: a new file in it is all that a new function takes. Nothing here knows processes, models or files, and
importing it needs no Ray, vLLM or DeepSpeed.
"""
