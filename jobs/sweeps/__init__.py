"""Sweeps: many trainings over a grid or a sample of settings, and the choice among them."""
