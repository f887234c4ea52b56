"""Options of a run: their defaults, bounds and help, and composing them with Hydra. No option is used here."""
