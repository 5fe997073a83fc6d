"""The base model and the adapter: their files, how they are loaded, and the layers that are trained."""
