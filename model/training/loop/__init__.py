"""The training loop: batches, losses, evaluation, checkpoints."""
