"""How fast this project's training is, beside TRL and beside a loop without anything around it."""
