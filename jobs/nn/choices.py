"""The names of optimizers, schedules and initialisations; imports nothing, for `--help`."""

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "one-cycle")
INITS = (
    "scaled",
    "he-normal",
    "he-uniform",
    "glorot-normal",
    "glorot-uniform",
    "lecun-normal",
    "normal-0.1",
)
"""`scaled` is he-normal for layers with relu and glorot-normal for the others. `normal-0.1` is the
standard normal / 10 for weights and biases alike, as in this project's original notebook."""
