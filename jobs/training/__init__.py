"""How a network is trained: the step, the trainer, its forms on several cores and on a cluster."""
