"""What is known about a captured graph: rewriting it, what it holds in memory, and what a runtime refuses of it."""
