"""Where things lie, and which are meant, unless told otherwise; imports nothing, for --help."""

DEFAULT_DATASET = "data/mnist"
DEFAULT_RUN = "runs/mnist"
DEFAULT_MODELS = "models"
DEFAULT_CHECKPOINT = "best"
DEFAULT_SETTLE = 5.0
