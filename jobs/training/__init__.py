"""Training: optimizer steps, the trainer, several cores, clusters, checkpoints and evaluation."""
