"""Training on Kubernetes: dataset export and LoRA fine-tuning. Never imports the operator."""
