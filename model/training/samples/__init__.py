"""A few held-out prompts that base and adapter answer when a run has trained, for a person to compare."""
