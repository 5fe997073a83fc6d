"""How fast the registry answers, and what it takes."""
