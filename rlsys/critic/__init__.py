"""The critic: a second gang, whose model has a value for every token."""
