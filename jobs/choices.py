"""Default places and choices of the jobs; imports nothing, so that --help is fast."""

DEFAULT_DATASET = "data/mnist"
DEFAULT_RUN = "runs/mnist"
DEFAULT_MODELS = "models"
DEFAULT_CHECKPOINT = "best"
DEFAULT_SETTLE = 5.0
