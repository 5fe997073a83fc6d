"""What a run costs the operator and the API server, under loads: `make bench-operator`."""
