"""8-bit precisions: which layers are quantised (`layers`), with what ranges, and in the form of each runtime."""
