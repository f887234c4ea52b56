"""What learner and critic have in common: W ranks of one DeepSpeed engine, called together."""
