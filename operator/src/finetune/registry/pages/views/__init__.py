"""View models: pure functions from what the stores give to what the templates show."""
