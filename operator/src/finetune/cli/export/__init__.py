"""Adapters and runs for other systems: what is written there, as pure functions of what the registry knows."""
