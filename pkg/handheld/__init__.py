"""handheld: distil, lower, verify and measure generative models on phones."""

__version__ = "0.1.0"
