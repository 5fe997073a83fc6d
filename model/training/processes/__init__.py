"""The processes that train a run: one or several, their share of the machine, and their end."""
