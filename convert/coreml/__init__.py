"""Core ML programs: the targets, what coremltools refuses, and an evaluator that runs programs without a Mac."""
