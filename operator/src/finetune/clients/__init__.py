"""Clients of the two servers that the operator talks to: Kubernetes and the registry."""
