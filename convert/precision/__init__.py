"""Which layers are quantised, with what ranges, and which precision is the smallest that is good enough."""
