"""A scikit-learn classifier over the trainer: networks from arrays in memory or from a dataset."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.nn import parameters as layout
from jobs.nn.architecture import parse_network
from jobs.nn.network import NO_ROWS, Network
from jobs.nn.parameters import Floats
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.environment import one_blas_thread
from jobs.training.epochs import epoch_metrics, open_evaluators
from jobs.training.estimator_config import (
    config_of,
    core_count,
    fixed_seed,
    tolerance,
    validation_fraction,
    value_range,
)
from jobs.training.evaluate import BLOCK_ROWS, Predictor, TrainedNetwork
from jobs.training.history import Metrics
from jobs.training.prepare import check_labels
from jobs.training.rounds import initial_state
from jobs.training.thread_map import ThreadMap
from jobs.training.trainer import Start, Trainer, parameters_digest
from pipeline.array_dataset import array_dataset
from pipeline.transforms import add_bias
from storage.dataset import Dataset, open_dataset
from storage.errors import MissingExtraError
from storage.location import Location
from storage.places import open_location
from storage.preparation import Preparation
from storage.schema import ELEMENT_TYPES

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise MissingExtraError("MLPClassifier", "scikit-learn", "sklearn") from error

Labels: TypeAlias = NDArray[Any]

DTYPES = ("float64", *(name for name in ELEMENT_TYPES if name != "float64"))
"""Types of `X` that are used as they are; others become the first."""


class MLPClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """A multilayer perceptron with scikit-learn's interface, trained as by `pipeline train`.

    Parameters have the names of `sklearn.neural_network.MLPClassifier`, and the network has the
    same default. Training has the defaults of `pipeline train`: AdamW, a one-cycle schedule and
    weight decay.

    Parameters
    ----------
    hidden_layer_sizes
        Width of each hidden layer; one number for a single layer, `()` for none.
    activation
        `relu`, `logistic` (or `sigmoid`) or `tanh`; a sequence gives each hidden layer its own.
    solver
        `adamw`, `adam`, or `sgd` with momentum. There is no `lbfgs`.
    alpha
        L2 strength. For `adam` and `sgd` as in scikit-learn: it is divided by the batch size. For
        `adamw`, decoupled weight decay. None: 0.1 for `adamw`, 0 otherwise.
    batch_size
        Rows of a step, at most all of them; `auto` for 200.
    learning_rate
        Schedule: `one-cycle` and `cosine` span `max_iter` epochs, `constant` keeps the rate.
    learning_rate_init
        The rate, at the peak of a schedule. None: 0.006 for `adamw`, 0.004 for `adam`, and for
        `sgd` 0.3 with momentum, 1.6 without.
    max_iter
        Epochs. None: 10, or more if these have fewer than 3,000 steps, but at most 200.
    shuffle
        Visit the rows in a new random order in each epoch.
    random_state
        Seed of the initial weights, the order and dropout; an integer has the same effect as
        `--seed`.
    tol, n_iter_no_change
        Stop after more than `n_iter_no_change` epochs in a row without an improvement by `tol`: of
        the accuracy on validation rows with `early_stopping`, otherwise of the training loss. The
        latter applies to the constant rate only; schedules complete their epochs.
    verbose
        Print a line for each epoch.
    warm_start
        Continue `fit` from the parameters of the previous one.
    momentum, nesterovs_momentum
        For `sgd`.
    early_stopping
        Keep rows for validation, and return to the parameters of their highest accuracy.
    validation_fraction
        Share of the rows for `early_stopping`, drawn at random from each class. A dataset's own
        validation split is used instead; if there is none, the last training rows.
    beta_1, beta_2
        For `adam` and `adamw`.
    dropout
        Share of hidden outputs left out in training.
    label_smoothing
        Share of each training label moved to all classes.
    scale
        Values `(low, high)` that become 0 and 1. `auto`: 0 and 255 for arrays of type uint8, none
        for others. None: no scaling. A dataset has its own.
    dtype
        `float32` or `float64`, for the arithmetic.
    n_jobs
        Cores to compute on; -1 for all. The results do not depend on it. None: as many as BLAS may
        use, which is this process's share in a worker of joblib.

    Attributes
    ----------
    classes_, n_features_in_, feature_names_in_
        As in scikit-learn. For a dataset, its labels, or class names if it has no labels.
    loss_curve_, loss_, best_loss_
        Mean cross-entropy of the training rows in each epoch, in the last and in the best.
    validation_scores_, best_validation_score_
        Accuracy on the validation rows after each epoch, and the best; None without
        `early_stopping`.
    n_iter_, t_
        Epochs of the last `fit`, and rows visited in all.
    network_
        The network's text, such as `784-relu-100-softmax-10`.
    model_digest_
        SHA-256 that identifies the model, as `pipeline train` prints it.
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: str = "adamw",
        alpha: float | None = None,
        batch_size: int | str = "auto",
        learning_rate: str = "one-cycle",
        learning_rate_init: float | None = None,
        max_iter: int | None = None,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        n_iter_no_change: int = 10,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        scale: Any = "auto",
        dtype: str = "float32",
        n_jobs: int | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.n_iter_no_change = n_iter_no_change
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.scale = scale
        self.dtype = dtype
        self.n_jobs = n_jobs

    _start: Start
    _seed: int
    network_: str
    loss_curve_: list[float]
    validation_scores_: list[float] | None

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train a network; with `warm_start`, continue with that of the previous call.

        Parameters
        ----------
        X
            An array `(rows, features)`; or a dataset, or its path or URL, for its training split.
        y
            The class of each row, as numbers or texts; left out for a dataset, which has labels.
        """
        start = None
        if self.warm_start and self.__sklearn_is_fitted__():
            start = Start(self._start.parameters, {})  # with a new optimizer
        else:
            self.__dict__.pop("_start", None)  # if the training fails, nothing is fitted
        self._seed = self._new_seed()
        if isinstance(X, (str, Path, Location, Dataset)):
            data = self._opened(X, y, start)
        else:
            values, y = self._validated(X, y, start)
            if start is None:
                self.classes_ = unique_labels(y)
            data = self._in_memory(values, y, start)
        end = self._train(config_of(self._parameters, data, self._seed), data, start)
        self._start = Start(end.parameters, {})
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:  # noqa: N803
        """Train for one epoch on these rows, at the constant rate `learning_rate_init`.

        Parameters
        ----------
        X
            An array `(rows, features)`.
        y
            The class of each row.
        classes
            All classes that the rows of any call may have; the first call needs them.
        """
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True.")
        start = self._start if self.__sklearn_is_fitted__() else None
        values, y = self._validated(X, y, start)
        if start is None and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if start is None:
            self.classes_ = unique_labels(classes)
        elif classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"classes is {classes}; the first call had {self.classes_}.")
        self._seed = self._seed + 1 if start else self._new_seed()  # another order in each call
        data = self._in_memory(values, y, start)
        config = config_of(self._parameters, data, self._seed, epochs=1, schedule="constant")
        self._start = self._train(config, data, start)
        return self

    def predict(self, X: Any) -> Labels:  # noqa: N803
        """Return the most probable class of each row of an array `(rows, features)`."""
        probabilities = self.predict_proba(X)
        labels: Labels = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Return the probability of each class, `(rows, classes)`, in the order of `classes_`.

        They are computed in blocks of rows, so they do not depend on the number of cores.
        """
        check_is_fitted(self)
        values = validate_data(self, X, dtype=DTYPES, order="C", reset=False)
        network = Network(parse_network(self.network_), self._start.parameters.dtype)
        member = TrainedNetwork(network, self._start.parameters)
        predict = Predictor((member,), self._scaling)
        bias = Preparation(self._scaling).bias(values.dtype)

        def probabilities(start: int) -> NDArray[np.float32]:
            return predict(add_bias(values[start : start + BLOCK_ROWS], bias))[0]

        starts = range(0, len(values), BLOCK_ROWS)
        threads = 1 if len(starts) == 1 else min(core_count(self._parameters), len(starts))
        with one_blas_thread(), ThreadMap(probabilities, threads) as blocks:
            result = np.concatenate(list(blocks.map(iter(starts))))
        if not np.isfinite(result).all():
            raise ValueError(
                f"X has values that are too large for the network's arithmetic, {network.dtype}: "
                "some probabilities are not finite."
            )
        return result

    def predict_log_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Return the logarithms of `predict_proba`; of 0 that is negative infinity."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    @property
    def coefs_(self) -> list[Floats]:
        """The weights of each layer, `(inputs, outputs)`."""
        return [matrix[1:] for matrix in self._matrices]

    @property
    def intercepts_(self) -> list[Floats]:
        """The biases of each layer, `(outputs,)`."""
        return [matrix[0] for matrix in self._matrices]

    @property
    def _matrices(self) -> list[Floats]:
        check_is_fitted(self)
        return layout.views(self._start.parameters, parse_network(self.network_))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_start")

    def _validated(self, X: Any, y: Any, start: Start | None) -> tuple[Any, Labels]:  # noqa: N803
        """Return arrays of rows and classes, checked by scikit-learn's conventions."""
        values, y = validate_data(self, X, y, dtype=DTYPES, order="C", reset=start is None)
        check_classification_targets(y)
        return values, y

    def _in_memory(self, values: NDArray[Any], y: Labels, start: Start | None) -> Dataset:
        """Return the rows as a dataset, some of them for validation with `early_stopping`."""
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y has the classes {unknown}; expected some of {self.classes_}.")
        labels = np.searchsorted(self.classes_, y)
        splits = {"train": np.arange(len(values))}
        if self.early_stopping:
            splits["train"], splits[VALIDATION] = train_test_split(
                splits["train"],
                test_size=validation_fraction(self._parameters),
                random_state=self._seed % 2**32,
                stratify=labels,
            )
        if start is None:
            self._scaling = value_range(self.scale, values.dtype)
        return array_dataset(values, labels, tuple(map(str, self.classes_)), self._scaling, splits)

    def _opened(self, place: Any, y: Any, start: Start | None) -> Dataset:
        """Return a dataset, with its classes, features and scaling as this estimator's."""
        if y is not None:
            raise ValueError("A dataset has its own labels; leave y out.")
        data = place if isinstance(place, Dataset) else open_dataset(open_location(place))
        check_labels(data)
        classes = np.array(data.labels or data.class_names)
        scaling = data.preparation.scaling
        if start is None:
            self.__dict__.pop("feature_names_in_", None)
            self.classes_, self._scaling = classes, scaling
            self.n_features_in_ = data.split("train").schema.features
        elif not np.array_equal(classes, self.classes_) or scaling != self._scaling:
            raise ValueError("The dataset has other classes or values than the previous call had.")
        return data

    @property
    def _parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self.get_params(deep=False)
        return parameters

    def _new_seed(self) -> int:
        """Return the seed of a training: `random_state` itself, or a number drawn from it."""
        seed = fixed_seed(self._parameters)
        if seed is None:
            seed = int(check_random_state(self.random_state).randint(2**31))
        return seed

    def _train(self, config: TrainConfig, data: Dataset, start: Start | None) -> Start:
        """Train from the initial weights or from `start`; return what a next call can continue."""
        if start is None:
            self.t_, self.loss_curve_, self.validation_scores_ = 0, [], None
        elif config.network != self.network_:
            raise ValueError(
                f"The network of the previous call is {self.network_}; the parameters now describe "
                f"{config.network}. Restore them, or set warm_start to False."
            )
        tol, patience = tolerance(self._parameters)
        layers, start = parse_network(config.network), start and _compatible(start, config)
        self.network_ = config.network
        with (
            one_blas_thread(),
            _Trainer(config, layers, data, start) as trainer,
            open_evaluators(trainer, data, config.epochs) as evaluators,
        ):
            best, self.n_iter_, stale = math.inf, 0, 0
            while self.n_iter_ < config.epochs and stale <= patience:
                self.n_iter_ += 1
                trainer.train_epoch(lambda: None)
                self.t_ += trainer.sums.rows
                value = self._recorded(epoch_metrics(trainer, evaluators), config)
                trainer.sums = NO_ROWS
                if value < best and self.early_stopping:
                    end = trainer.as_start()
                if self.early_stopping or config.schedule == "constant":
                    stale = stale + 1 if value > best - tol else 0
                best = min(best, value)
            end = end if self.early_stopping else trainer.as_start()
        self.loss_, self.best_loss_ = self.loss_curve_[-1], min(self.loss_curve_)
        self.best_validation_score_ = self.validation_scores_ and max(self.validation_scores_)
        self.model_digest_ = parameters_digest(layers, end.parameters)
        return end

    def _recorded(self, metrics: Metrics, config: TrainConfig) -> float:
        """Record the metrics of an epoch; return the value that training is to lower."""
        loss = float(metrics["loss"])
        self.loss_curve_.append(loss)
        line, value = f"Epoch {self.n_iter_} of {config.epochs}: loss {loss:.4f}", loss
        if self.early_stopping:
            accuracy = float(metrics["evaluation"][VALIDATION]["accuracy"])
            self.validation_scores_ = [*(self.validation_scores_ or ()), accuracy]
            line, value = f"{line}, validation accuracy {accuracy:.4f}", -accuracy
        if self.verbose:
            print(line)
        return value


class _Trainer(Trainer):
    """A trainer whose state another one can start from, with scikit-learn's type of errors."""

    def as_start(self) -> Start:
        """Return a copy of the present state."""
        vectors = {name: vector.copy() for name, vector in self._stepper.state.items()}
        return Start(self.parameters.copy(), vectors, self._optimizer_steps + self.steps)

    def check_finite(self, quantity: str, value: float, split: str = "train") -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"Training diverged: {quantity} is {value}. Scale the features to about 0 to 1, or "
                "choose a smaller learning_rate_init."
            )


def _compatible(start: Start, config: TrainConfig) -> Start:
    """Return a start with the optimizer's vectors of a configuration, new ones if it has others."""
    parameters = start.parameters.astype(config.dtype)
    vectors = initial_state(config, parameters)
    if start.vectors.keys() != vectors.keys():
        return Start(parameters, vectors)
    vectors = {name: vector.astype(config.dtype) for name, vector in start.vectors.items()}
    return Start(parameters, vectors, start.optimizer_steps)
