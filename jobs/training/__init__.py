"""How a network is trained: the step, the trainer, and its forms on several cores and on a cluster."""
