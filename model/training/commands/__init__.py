"""The commands beside `train`: what they look at, calculate and write."""
