"""Encode your videos once, train world models on the latents."""

__version__ = "0.1.0"
