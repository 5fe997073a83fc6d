"""The registry: datasets, runs and adapters behind an HTTP API, in SQLite or PostgreSQL.

Imports go one way: server > service > store > schema. Nothing else in the project touches the database.
"""
