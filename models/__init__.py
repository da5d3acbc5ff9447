"""Students, teachers and the latent spaces that they share. Torch modules only; nothing else of ours is imported."""
