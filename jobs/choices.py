"""Default places of the jobs, and other names of options. Light, so that --help is fast."""

from collections.abc import Iterable

DEFAULT_DATASET = "data/mnist"
DEFAULT_RUN = "runs/mnist"
DEFAULT_RUNS = "runs"
DEFAULT_MODELS = "models"
DEFAULT_CHECKPOINT = "best"
DEFAULT_SETTLE = 5.0
LARGE_DRIFT = 3.0
"""Scorings with a larger drift score say what differs from training."""
DEFAULT_BELOW = 0.99
"""The probability below which `score --review` lists a row."""
RECIPES = ("seed", "quick", "accurate", "record", "fashion")
"""The recipes of training, each a file in `jobs/training/recipes`."""
DISTORTION_SETS = ("digits", "none")
"""The names in `pipeline.distortions.SETS`, whose import needs NumPy."""
EXPORT_ENDINGS = (".onnx", ".safetensors", ".py")
"""The endings of files that a model can be exported to."""
OTHER_NAMES = {
    "batch-size": "batch bs minibatch b",
    "checkpoint": "c",
    "compression": "codec",
    "config": "c",
    "dataset": "data input d",
    "distort": "augment augmentation",
    "dtype": "precision",
    "export": "onnx save",
    "epochs": "iterations max-iter e n",
    "from": "base base-model finetune fine-tune init-from parent pretrained warm-start",
    "help": "help",
    "holdout": "cv val-split validation",
    "inbox": "folder i",
    "ingest": "convert download import",
    "inspect": "info ls show",
    "l2": "decay regularization wd weight-decay",
    "learning-rate": "lr l",
    "list": "l",
    "min-accuracy": "threshold",
    "network": "arch hidden hidden-layers hidden-units layers model neurons units m",
    "model": "m",
    "name": "n",
    "optimizer": "solver",
    "out": "dest output",
    "overwrite": "force f",
    "patience": "early-stopping",
    "quiet": "silent",
    "recipe": "preset",
    "resume": "continue",
    "rows-per-chunk": "chunk-size",
    "run": "r",
    "scale": "normalize",
    "schedule": "cron",
    "scheduler": "address",
    "score": "eval evaluate test",
    "scores": "history",
    "seed": "random-state s",
    "split": "s",
    "storage-option": "endpoint-url",
    "threads": "cores cpus jobs n-jobs num-workers j t",
    "timezone": "tz t",
    "train": "fit resume run",
    "verify": "check validate",
    "version": "version",
    "workers": "jobs n-jobs num-workers j w",
}
"""Commands and options, without dashes, and how other programs call them."""


def known_name(name: str, known: Iterable[str]) -> str:
    """Return the known command or option that other programs call `name`, or else `name`."""
    words, bare = {word.lstrip("-") for word in known}, name.lstrip("-")
    names = (ours for ours, others in OTHER_NAMES.items() if bare in others.split())
    return next((ours for ours in names if ours in words), name)
