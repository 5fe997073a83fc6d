"""From a dataset to the rows that a trainer reads."""
