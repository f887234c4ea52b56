"""Guards that end a run which cannot go on: NaN and infinity, missing rewards, failing reward functions."""
