"""From prompts to scored groups: sampling, scoring and reference at the same time, fed by the scheduler."""
