"""Distillation: recipes, video data, losses, the trainer and the run folder that it leaves."""
