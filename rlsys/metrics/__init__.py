"""The metrics of a step: computing, formatting and showing them, and the trackers. Files belong to `run_folder`."""
