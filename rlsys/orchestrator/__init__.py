"""From prompts to a step's batch: admission, routing, the life of a group, experience. No Ray calls here."""
