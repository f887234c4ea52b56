"""`rlsys report`: one HTML file with a run's curves, timeline and rollouts. Reading the run belongs to `run_folder`."""
