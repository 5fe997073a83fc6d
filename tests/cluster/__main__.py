"""python -m tests.cluster up|down|status|load|kubeconfig: the local Kubernetes by hand."""
