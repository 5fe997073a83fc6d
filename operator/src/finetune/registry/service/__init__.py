"""The registry's HTTP API. Each route says who may call it and which store does the work; nothing else."""
