"""A declarative batch-job runner for Stable Diffusion: a manifest in, pictures and their records out."""

__version__ = "0.1.0"
