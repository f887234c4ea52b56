"""`rlsys export`: a checkpoint as a folder that transformers, peft and vLLM load, with a model card."""
