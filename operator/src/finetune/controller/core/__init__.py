"""Decisions about runs, as pure functions: no kopf, HTTP, SQL, clock or environment."""
