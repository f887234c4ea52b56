"""Running programs of unknown origin, each in a sandbox of its own. What a result is worth is for rewards to say."""
