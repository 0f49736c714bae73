"""The fields of a training run's configuration: defaults, ranges, and their texts in help."""

from dataclasses import dataclass
from typing import Any

from jobs.nn.architecture import HIDDEN_ACTIVATIONS
from jobs.nn.choices import INITS, OPTIMIZERS, SCHEDULES
from jobs.training.settings import POSITIVE, setting_field


class _Deep:
    """All networks with hidden layers, as the values of another setting that `only_with` needs."""

    def __contains__(self, network: str) -> bool:
        return any(activation in network for activation in HIDDEN_ACTIVATIONS)


DEEP = _Deep()

BY_OPTIMIZER = {
    "learning_rate": {"sgd": 1.6, "momentum": 0.3, "nesterov": 0.3, "adam": 0.004, "adamw": 0.006},
    "l2": dict.fromkeys(OPTIMIZERS, 0.0) | {"adamw": 0.1},
}
"""Defaults of the settings that depend on the optimizer.

All learning rates except adamw's were chosen on MNIST with the other defaults. Among rates a factor
of 1.3 to 2 apart, each has the lowest cross-entropy on the last 10,000 training rows, held out, on
average over seeds 0 to 2. AdamW decouples its weight decay from the gradient; the same strength
would dominate the gradient of the others.
"""
WARM_UP = {"constant": 0.0, "cosine": 0.0, "one-cycle": 0.3}
RATES = ", ".join(f"{rate:g} for {name}" for name, rate in BY_OPTIMIZER["learning_rate"].items())
SMALLEST_SHUFFLE_MEMORY = 2**20
ROUNDS_ONLY = ("parallel", ("rounds",))
OF_ADAM: dict[str, Any] = {
    "least": 0,
    "only_with": ("optimizer", ("adam", "adamw")),
    "added": True,
}


def _distortion(text: str, more: str = "", default: float = 0.0, **limits: Any) -> Any:
    return setting_field("Distortions", default, text, more, added=True, **{"least": 0} | limits)


@dataclass(frozen=True, repr=False)
class TrainSettings:
    """The fields of `TrainConfig`, in the order of the reference."""

    network: str = setting_field(
        "Model",
        "relu-200-sigmoid-80",
        "Hidden layers.",
        "Each is an activation (relu, sigmoid or tanh) and a width. The inputs and the softmax "
        "layer of the classes come from the dataset; given, as in `784-relu-200-softmax-10`, they "
        "are checked. `softmax` has no hidden layer.",
    )
    init: str = setting_field(
        "Model",
        "scaled",
        "Distribution of the initial weights.",
        "`scaled` is `he-normal` for layers with relu, `glorot-normal` for others.",
        choices=INITS,
    )
    seed: int = setting_field(
        "Model",
        0,
        "Random seed.",
        "It determines the initial weights, the order of the rows, distortions and dropout.",
        least=0,
        most=2**63 - 1,
    )
    dtype: str = setting_field(
        "Model", "float32", "Floating-point type.", choices=("float32", "float64")
    )
    arithmetic: str = setting_field(
        "Model",
        "native",
        "Fastest functions of this processor, or portable ones.",
        "`portable` gives the same model on every x86-64 processor with AVX2: NumPy and OpenBLAS "
        "use functions that all of these have. See "
        "[arithmetic](../explanation/arithmetic.md#portable-arithmetic).",
        choices=("native", "portable"),
        added=True,
    )
    epochs: int = setting_field(
        "Optimisation", 10, "Passes over the training rows.", least=1, most=10**6
    )
    batch_size: int = setting_field(
        "Optimisation", 200, "Rows per optimizer step; 0 for all.", least=0
    )
    optimizer: str = setting_field("Optimisation", "adamw", "Update rule.", choices=OPTIMIZERS)
    learning_rate: float = setting_field(
        "Optimisation",
        None,
        "Peak learning rate.",
        f"The default depends on the optimizer: {RATES}.",
        default_text="0.006 for adamw",
        least=0,
        most=10**6,
    )
    schedule: str = setting_field(
        "Optimisation",
        "one-cycle",
        "Learning-rate schedule.",
        "`constant` keeps the rate, `cosine` lowers it to 0, with `restarts` several times, and "
        "`one-cycle` raises it for 30 % of the steps, then lowers it to almost 0.",
        choices=SCHEDULES,
    )
    warm_up: float = setting_field(
        "Optimisation",
        None,
        "Share of each cycle in which the rate rises; 0 for none.",
        "It rises in a line with `cosine`, along half a cosine with `one-cycle`.",
        default_text="0.3 for one-cycle, 0 for cosine",
        least=0,
        most=1,
        only_with=("schedule", ("cosine", "one-cycle")),
        added=True,
    )
    restarts: int = setting_field(
        "Optimisation",
        0,
        "Warm restarts; needs --schedule cosine.",
        "The last epochs are further cycles. The checkpoint at the end of each cycle, the first "
        "included, is a snapshot, which is kept.",
        least=0,
        most=1000,
        only_with=("schedule", ("cosine",)),
        added=True,
    )
    restart_epochs: int | None = setting_field(
        "Optimisation",
        None,
        "Epochs of the cycle after each restart.",
        "The first cycle has the other epochs.",
        default_text="epochs / (restarts + 1)",
        least=1,
        only_with=("restarts", POSITIVE),
        added=True,
    )
    restart_factor: float = setting_field(
        "Optimisation",
        1.0,
        "Peak of a restarted cycle / learning rate.",
        least=0,
        most=1,
        only_with=("restarts", POSITIVE),
        added=True,
    )
    momentum: float = setting_field(
        "Optimisation",
        0.9,
        "Coefficient of momentum and nesterov.",
        least=0,
        most=0.9999,
        only_with=("optimizer", ("momentum", "nesterov")),
    )
    beta1: float = setting_field(
        "Optimisation", 0.9, "Decay of adam's mean gradient.", most=0.9999, **OF_ADAM
    )
    beta2: float = setting_field(
        "Optimisation", 0.999, "Decay of adam's mean squared gradient.", most=0.99999, **OF_ADAM
    )
    l2: float = setting_field(
        "Optimisation",
        None,
        "L2 strength.",
        "L2 regularisation is decoupled weight decay with adamw, and part of the gradient "
        "otherwise.",
        default_text="0.1 for adamw, 0 otherwise",
        least=0,
        most=10**6,
    )
    dropout: float = setting_field(
        "Optimisation",
        0.0,
        "Share of hidden outputs left out in training.",
        "Each row leaves out its own, anew in each epoch; the others are divided by 1 - share.",
        least=0,
        most=0.9,
        only_with=("network", DEEP),
        added=True,
    )
    label_smoothing: float = setting_field(
        "Optimisation",
        0.0,
        "Share of each training label moved to all classes.",
        "Each class then has at least this share / classes of the label. The loss of a training "
        "epoch is that of the smoothed labels; evaluation uses the labels themselves.",
        least=0,
        most=0.5,
        added=True,
    )
    micro_batches: int | None = setting_field(
        "Optimisation",
        None,
        "Parts of a mini-batch for parallel gradients.",
        "Their gradients are summed in a fixed tree, so the model depends on their number. By "
        "default 1 below 320 rows, then 4 or as many as have at most 256 rows each. The work of a "
        "single one is divided by the units of the first hidden layer.",
        default_text="by batch size",
        least=1,
    )
    threads: int = setting_field(
        "Optimisation",
        0,
        "CPU cores to compute on.",
        default_text="all cores",
        least=0,
        most=1024,
        may_change=True,
    )
    shuffle: bool = setting_field("Data", True, "Visit rows in a new random order each epoch.")
    shuffle_memory: int = setting_field(
        "Data",
        256 * 2**20,
        "Memory for shuffling, such as 512MiB.",
        "Rows are shuffled within windows of chunks; two windows fit into this memory. A whole "
        "number is in bytes; TOML takes a size with a unit in quotes.",
        default_text="256 MiB",
        least=SMALLEST_SHUFFLE_MEMORY,
        is_size=True,
    )
    drop_last: bool = setting_field("Data", False, "Skip an incomplete last mini-batch.")
    evaluate: str | None = setting_field(
        "Evaluation",
        None,
        "Splits to evaluate, or none; validation always is.",
        "Some of `train`, `validation`, `test`, with commas between them, evaluated after each "
        "epoch.",
        default_text="test, if it has labels",
    )
    average_shifts: int = setting_field(
        "Evaluation",
        0,
        "Average over shifts by up to N pixels.",
        "Accuracy and loss after each epoch are those of probabilities averaged over an image and "
        "its shifts by 1 to N pixels up, down, left and right. `score` does the same by default.",
        least=0,
        most=3,
        added=True,
    )
    holdout: int = setting_field(
        "Evaluation",
        0,
        "Last training rows for validation.",
        "For a dataset without a validation split. The training rows must be in random order: the "
        "last rows of sorted files belong to few classes.",
        least=0,
        unit="of rows",
    )
    patience: int = setting_field(
        "Evaluation",
        0,
        "Stop after N epochs without a lower validation loss.",
        default_text="no early stopping",
        least=0,
    )
    checkpoint_every: int = setting_field(
        "Checkpoints",
        0,
        "Mini-batches between checkpoints.",
        default_text="at the end of each epoch only",
        least=0,
        may_change=True,
    )
    keep: int = setting_field(
        "Checkpoints",
        3,
        "Newest checkpoints to keep, plus the best.",
        "Snapshots are kept, too.",
        least=1,
        may_change=True,
    )
    rotate: float = _distortion(
        "Largest rotation, in degrees.",
        "Each image is rotated by an angle drawn evenly between this to the left and to the right.",
        most=180,
    )
    scale: float = _distortion(
        "Largest change of width and height, as a share.",
        "0.15 draws factors evenly from 0.85 to 1.15, one for each axis.",
        most=0.9,
    )
    shear: float = _distortion(
        "Largest shear, as a share.", "0.15 moves rows by up to 0.15 of their distance.", most=1
    )
    shift: float = _distortion("Largest shift along each axis, in pixels.", most=1000)
    elastic: float = _distortion(
        "Elastic displacement, in pixels r.m.s.",
        "A smooth random field moves each pixel (Simard et al., 2003).",
        most=100,
    )
    elastic_sigma: float = _distortion(
        "Smoothness of the elastic displacement, in pixels.",
        "The standard deviation of the Gaussian that smooths the field.",
        default=5.0,
        least=1,
        most=1000,
        only_with=("elastic", POSITIVE),
    )
    distort_until: float = _distortion(
        "Share of the epochs before distortions are halved.",
        "Half strengths at the end help short trainings.",
        default=1.0,
        most=1,
        only_with=("distort", ("some",)),
    )
    parallel: str = setting_field(
        "Rounds",
        "steps",
        "Parallelise each step, or rounds of local steps.",
        "`steps` gives the same model on any number of workers or none; `rounds` is another "
        "algorithm, with another model that does not depend on the workers either.",
        choices=("steps", "rounds"),
    )
    replicas: int = setting_field(
        "Rounds",
        4,
        "Replicas, each at learning rate x sqrt(replicas).",
        least=1,
        most=1024,
        only_with=ROUNDS_ONLY,
    )
    sync_every: int = setting_field(
        "Rounds", 48, "Steps of each replica between averages.", least=1, only_with=ROUNDS_ONLY
    )
    outer_learning_rate: float = setting_field(
        "Rounds",
        1.0,
        "Step size towards the replicas' mean.",
        "1 takes the mean; DiLoCo uses 0.7.",
        least=0,
        most=10,
        only_with=ROUNDS_ONLY,
    )
    outer_momentum: float = setting_field(
        "Rounds",
        0.5,
        "Nesterov momentum of the outer step.",
        "DiLoCo uses 0.9.",
        least=0,
        most=0.9999,
        only_with=ROUNDS_ONLY,
    )
