"""Fine-tuning as a Kubernetes resource: API, operator, registry and command line."""
