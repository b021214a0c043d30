"""Video diffusion models in JAX: train, tune and sample. Importing the package imports nothing else."""

__version__ = "0.1.0"
