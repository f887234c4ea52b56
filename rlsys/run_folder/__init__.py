"""Everything that reads or writes the files of a run: checkpoints, metrics, rollouts, configuration."""
