"""Programs of unknown origin, each in a sandbox of its own."""
