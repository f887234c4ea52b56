"""`rlsys export`: a checkpoint as a folder that transformers, peft and vLLM load, with a model card.

Writing a run's own checkpoints belongs to `learner`, reading them to `run_folder`.
"""
