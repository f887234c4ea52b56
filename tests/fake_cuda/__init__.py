"""Code for GPUs on an imaginary GPU, and the check that no line of it is left out (docs/development.md)."""
