"""What a run tells: lines in metrics.jsonl, posts to the registry, and what a person sees at a terminal."""
