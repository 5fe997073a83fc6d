"""Fine-tuning: from rows and a base model to a verified adapter."""
