"""How fast the registry's pages are with many runs: `python -m benchmarks.pages`."""
