"""Core AI, Apple's runtime from iOS 27 on: the target, small weights, what its converter refuses or gets wrong."""
