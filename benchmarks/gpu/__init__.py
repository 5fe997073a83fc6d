"""The same comparison on one CUDA GPU: a model of the shape of Llama 3.1 8B with random weights."""
