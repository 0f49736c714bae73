"""The scikit-learn estimator: its conventions, its parameters, and the bits of `train`."""

import pickle
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from jobs.training.estimator import MLPClassifier
from jobs.training.estimator_config import config_of
from jobs.training.job import train
from jobs.training.model import Model
from pipeline.array_dataset import array_dataset
from pipeline.ingest import ingest
from storage.errors import BadDataError, MissingExtraError
from tests.jobs.trainings import REPOSITORY

CHECKS = 50
"""scikit-learn has at least these checks for a classifier."""
SETTINGS = {"network": "tanh-12-relu-9", "seed": 3, "epochs": 2, "evaluate": "none"}
PARAMETERS: dict[str, Any] = {
    "hidden_layer_sizes": (12, 9),
    "activation": ("tanh", "relu"),
    "random_state": 3,
    "max_iter": 2,
}
"""The same for the estimator."""


def blobs(rows: int = 120, features: int = 5) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of three classes, which overlap a little."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, rows)
    return random.normal(size=(rows, features)) + labels[:, None], labels


def small(**parameters: Any) -> MLPClassifier:
    """An estimator that is trained fast."""
    usual = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 3, "batch_size": 40}
    return MLPClassifier(**usual | parameters)


@pytest.mark.slow
def test_conventions_of_scikit_learn() -> None:
    """All checks of scikit-learn pass; none is expected to fail."""
    results = check_estimator(MLPClassifier(max_iter=40), on_skip=None)
    statuses = [result["status"] for result in results]
    assert {"passed", "skipped"} >= set(statuses)  # array API, which needs a switch, is skipped
    assert statuses.count("passed") >= CHECKS > 8 * statuses.count("skipped")


@pytest.mark.parametrize(
    "dtype", ["uint8", *[pytest.param(f"float{bits}", marks=pytest.mark.slow) for bits in (32, 64)]]
)
def test_bits_of_train(dtype: str, tmp_path: Path) -> None:
    """Arrays give the model of `train` on a dataset of several chunks, as does the dataset."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 10, 4100 if dtype == "uint8" else 900)
    images = random.random((len(labels), 28, 28))
    images[np.arange(len(labels)), 8 + labels] += 1  # a brighter line
    images[:, :6] = 0  # columns that are left out, as in a batch of digits
    images = (images * 127).astype(dtype) if dtype == "uint8" else images.astype(dtype)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels)
    place = tmp_path / "dataset"
    dataset = ingest(
        str(tmp_path / "set.npz"), place, scale=None if dtype == "uint8" else "none"
    ).dataset
    assert dataset.split("train").schema.chunks > 1
    expected = train(SETTINGS, dataset=place, run=tmp_path / "run")
    for arguments in ((images.reshape(len(images), -1), labels), (dataset,), (str(place),)):
        estimator = MLPClassifier(**PARAMETERS).fit(*arguments)
        assert expected.parameters_digest == estimator.model_digest_
        assert expected.history["loss"] == estimator.loss_curve_
    probabilities = Model.load(tmp_path / "run").predict_proba(images[:700])
    assert np.array_equal(probabilities, estimator.predict_proba(images[:700].reshape(700, -1)))


@pytest.mark.slow
def test_validation_of_a_dataset(digits: Path, tmp_path: Path) -> None:
    """With `early_stopping` the last rows of a dataset are held out, as by `train`."""
    held_out = train(SETTINGS | {"holdout": 104}, dataset=digits, run=tmp_path / "run")
    estimator = MLPClassifier(**PARAMETERS, early_stopping=True).fit(digits)
    assert held_out.history["validation_accuracy"] == estimator.validation_scores_
    assert held_out.history["loss"] == estimator.loss_curve_
    assert list(range(10)) == list(estimator.classes_)


EFFECTS: dict[str, list[Any]] = {
    "hidden_layer_sizes": [7, (6, 3), ()],
    "activation": ["tanh", ("logistic",)],
    "solver": ["adam", "sgd"],
    "alpha": [0.5],
    "batch_size": [20],
    "learning_rate": ["constant", "cosine"],
    "learning_rate_init": [0.02],
    "max_iter": [4],
    "shuffle": [False],
    "random_state": [1, np.random.RandomState(5)],
    "beta_1": [0.8],
    "beta_2": [0.9],
    "early_stopping": [True],
    "dropout": [0.5],
    "label_smoothing": [0.1],
    "scale": [(0, 2)],
    "dtype": ["float64"],
}
SGD = {"solver": "sgd", "learning_rate": "constant"}
LONG = {"max_iter": 60, "learning_rate": "constant"}
OTHER_EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "momentum": (SGD, 0.5),
    "nesterovs_momentum": (SGD, False),
    "tol": (LONG, 1.0),
    "n_iter_no_change": (LONG | {"tol": 1.0}, 1),
    "validation_fraction": ({"early_stopping": True}, 0.3),
}
"""Parameters that have an effect with certain others."""


@pytest.mark.slow
def test_every_parameter_has_an_effect() -> None:
    """Another value of any parameter trains another model; `n_jobs` and `verbose` do not."""
    rows, labels = blobs()
    tried = {"verbose", "n_jobs", "warm_start"}  # these have tests of their own
    for name, values in EFFECTS.items():
        usual = small().fit(rows, labels).model_digest_
        for value in values:
            assert usual != small(**{name: value}).fit(rows, labels).model_digest_, (name, value)
        tried.add(name)
    for name, (others, value) in OTHER_EFFECTS.items():
        usual = small(**others).fit(rows, labels)
        changed = small(**others | {name: value}).fit(rows, labels)
        assert usual.model_digest_ != changed.model_digest_, name
        tried.add(name)
    assert small().get_params().keys() == tried
    assert (
        small(n_jobs=1).fit(rows, labels).model_digest_ == small().fit(rows, labels).model_digest_
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "lbfgs"}, "solver is 'lbfgs'; expected 'adamw' or 'adam' or 'sgd'"),
        ({"activation": "identity"}, "activation is 'identity'; expected"),
        ({"activation": ("relu", "tanh")}, "2 names for hidden_layer_sizes of length 1"),
        ({"activation": None}, "activation is None; expected"),
        ({"learning_rate": "adaptive"}, "learning_rate is 'adaptive'; expected"),
        ({"learning_rate_init": -1}, "learning_rate_init = -1.0; expected"),
        ({"max_iter": 0}, "max_iter = 0; expected"),
        ({"max_iter": 2.5}, "max_iter = 2.5; expected a whole number"),
        ({"alpha": "much"}, "alpha = 'much'; expected a number"),
        ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes is 0; expected"),
        ({"hidden_layer_sizes": 2.5}, "hidden_layer_sizes is 2.5; expected"),
        ({"early_stopping": "no"}, "early_stopping is 'no'; expected True or False"),
        ({"solver": "sgd", "nesterovs_momentum": None}, "nesterovs_momentum is None; expected"),
        ({"warm_start": "no"}, "warm_start is 'no'; expected"),
        ({"batch_size": 0}, "batch_size is 0; expected"),
        ({"random_state": -1}, "random_state is -1; expected"),
        ({"tol": -1}, "tol is -1; expected"),
        ({"n_iter_no_change": 0}, "n_iter_no_change is 0; expected"),
        ({"early_stopping": True, "validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"scale": (1, 0)}, r"scale is \(1, 0\); expected"),
        ({"dtype": "float16"}, "dtype = 'float16'; expected"),
        ({"n_jobs": 0}, "n_jobs is 0; expected"),
    ],
)
def test_refused_parameters(parameters: dict[str, Any], message: str) -> None:
    """A value that has no meaning here is refused by `fit`, with the parameter's name."""
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(*blobs())


@pytest.mark.parametrize(
    ("solver", "others"),
    [
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"momentum": 0.8, "nesterovs_momentum": True}),
        ("sgd", {"momentum": 0.8, "nesterovs_momentum": False}),
        ("adam", {"beta_1": 0.8, "beta_2": 0.9}),
    ],
)
def test_steps_of_scikit_learn(solver: str, others: dict[str, Any]) -> None:
    """From the same weights, parameters of the same name lead to scikit-learn's weights."""
    rows, labels = blobs()
    shared = {
        "hidden_layer_sizes": (6,),
        "activation": "tanh",
        "solver": solver,
        "alpha": 0.7,
        "batch_size": 40,
        "learning_rate_init": 0.0,
        "learning_rate": "constant",
        "max_iter": 3,
        "shuffle": False,
        "warm_start": True,
        "random_state": 0,
        **others,
    }
    estimator = MLPClassifier(dtype="float64", **shared).fit(rows, labels)
    theirs = TheirClassifier(**shared | {"learning_rate_init": 1e-9, "max_iter": 1})
    with pytest.warns(match="hasn't converged"):
        theirs.fit(rows, labels)
    theirs.coefs_ = [weights.copy() for weights in estimator.coefs_]
    theirs.intercepts_ = [biases.copy() for biases in estimator.intercepts_]
    with pytest.warns(match="hasn't converged"):
        theirs.set_params(learning_rate_init=0.05, max_iter=3).fit(rows, labels)
    estimator.set_params(learning_rate_init=0.05).fit(rows, labels)
    for ours, expected in zip(estimator.coefs_, theirs.coefs_, strict=True):
        # They add Adam's epsilon before its bias correction.
        np.testing.assert_allclose(ours, expected, rtol=1e-3 if solver == "adam" else 1e-8)


def test_partial_fit_continues() -> None:
    """Calls with parts of the rows take the steps of one epoch; without shuffling, its bits."""
    rows, labels = blobs()
    usual = {"shuffle": False, "learning_rate_init": 0.01}
    whole = small(**usual, learning_rate="constant", max_iter=2).fit(rows, labels)
    parts = small(**usual)
    for part in (slice(80), slice(80, 120), slice(120)):
        parts.partial_fit(rows[part], labels[part], classes=[0, 1, 2])
    assert whole.model_digest_ == parts.model_digest_
    assert (2 * 120, 3) == (parts.t_, len(parts.loss_curve_))
    parts.set_params(solver="sgd", dtype="float64").partial_fit(rows, labels)
    with pytest.raises(ValueError, match=r"classes \[5\]; expected some of \[0 1 2\]"):
        parts.partial_fit(rows, np.full(120, 5))
    with pytest.raises(ValueError, match="classes is"):
        parts.partial_fit(rows, labels, classes=[0, 1])
    with pytest.raises(ValueError, match="first call"):
        small().partial_fit(rows, labels)
    with pytest.raises(ValueError, match="early_stopping"):
        small(early_stopping=True).partial_fit(rows, labels, classes=[0, 1, 2])


def test_partial_fit_shuffles() -> None:
    """Each call visits the rows in another order, that of the next seed."""
    rows, labels = blobs()
    usual = {"solver": "sgd", "momentum": 0.0}
    twice = small(**usual).partial_fit(rows, labels, classes=[0, 1, 2]).partial_fit(rows, labels)
    warm = small(**usual, learning_rate="constant", max_iter=1, warm_start=True).fit(rows, labels)
    warm.set_params(random_state=1).fit(rows, labels)
    assert warm.model_digest_ == twice.model_digest_


def test_warm_start() -> None:
    """`fit` continues from the parameters before, with a new optimizer and schedule."""
    rows, labels = blobs()
    estimator = small(warm_start=True, max_iter=20).fit(rows, labels)
    before = [weights.copy() for weights in estimator.coefs_]
    estimator.set_params(learning_rate_init=0.0).fit(rows, labels)
    assert all(map(np.array_equal, before, estimator.coefs_))
    assert (20, 40, 40 * 120) == (estimator.n_iter_, len(estimator.loss_curve_), estimator.t_)
    estimator.set_params(dtype="float64").fit(rows, labels)
    assert np.float64 == estimator.coefs_[0].dtype
    assert np.array_equal(before[0], estimator.coefs_[0])
    with pytest.raises(ValueError, match="expected some of"):
        estimator.fit(rows, labels + 1)
    with pytest.raises(ValueError, match="warm_start"):
        small(warm_start=True).fit(rows, labels).set_params(hidden_layer_sizes=3).fit(rows, labels)


def test_warm_start_that_is_refused() -> None:
    """A call that is refused, or diverges, leaves the network of the previous one."""
    rows, labels = blobs()
    estimator = small(warm_start=True).fit(rows, labels)
    before = estimator.predict_proba(rows)
    with pytest.raises(ValueError, match="expecting 5 features"):
        estimator.fit(rows[:, :2], labels)
    with pytest.raises(ValueError, match="diverged"):
        estimator.set_params(solver="sgd", learning_rate_init=1e5).fit(rows * 1e9, labels)
    assert np.array_equal(before, estimator.predict_proba(rows))


def test_early_stopping_returns_to_the_best() -> None:
    """The parameters after the epoch with the highest accuracy are kept, and scores recorded."""
    rows, labels = blobs(400)
    stopping = {"early_stopping": True, "n_iter_no_change": 4, "learning_rate": "constant"}
    estimator = small(**stopping, max_iter=200, validation_fraction=0.25).fit(rows, labels)
    scores = estimator.validation_scores_
    best = scores.index(max(scores)) + 1
    assert max(scores) == estimator.best_validation_score_
    assert best < estimator.n_iter_ == len(scores) < 200
    until = small(**stopping, max_iter=best, validation_fraction=0.25).fit(rows, labels)
    assert until.model_digest_ == estimator.model_digest_


def test_validation_rows_of_each_class() -> None:
    """Rows are kept by class, so each class needs two; the other rows are trained on."""
    rows, labels = blobs()
    estimator = small(early_stopping=True, validation_fraction=0.25).fit(rows, labels)
    assert 3 * 90 == estimator.t_
    labels[7] = 3
    with pytest.raises(ValueError, match="least populated class"):
        estimator.fit(rows, labels)


def test_rows_of_a_split() -> None:
    """A split in memory reads its samples in their order, with the bias first."""
    values, labels = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])
    splits = {"train": np.array([5, 0]), "validation": np.array([3])}
    data = array_dataset(values, labels, ("a", "b", "c"), None, splits)
    block = data.split("train").read_chunk(0)
    assert [[1, 10, 11], [1, 0, 1]] == block.inputs.tolist()
    assert block.targets is not None
    assert [[0, 0, 1], [1, 0, 0]] == block.targets.tolist()
    assert [[1, 6, 7]] == data.split("validation").read_chunk(0).inputs.tolist()


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the import names the extra that installs it."""
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*'sklearn'"):
        runpy.run_path(str(REPOSITORY / "jobs/training/estimator.py"))


def test_training_loss_stops_at_a_constant_rate_only() -> None:
    """Schedules complete their epochs, whose last ones lower the loss most."""
    rows, labels = blobs()
    stopped = small(max_iter=30, tol=5.0, n_iter_no_change=2, learning_rate="constant")
    assert stopped.fit(rows, labels).n_iter_ == 4
    assert stopped.set_params(learning_rate="one-cycle").fit(rows, labels).n_iter_ == 30


@pytest.mark.parametrize(
    ("batch_size", "epochs"), [("auto", 200), (30, 100), (3, 10), (10**6, 200)]
)
def test_default_epochs(batch_size: Any, epochs: int) -> None:
    """Few rows are visited in more epochs: 10 to 200, for 3,000 steps."""
    rows, labels = blobs(900)
    data = array_dataset(rows, labels, ("0", "1", "2"), None, {"train": np.arange(900)})
    estimator = MLPClassifier(batch_size=batch_size)
    assert epochs == config_of(estimator.get_params(), data, seed=0).epochs


def test_types_of_arrays() -> None:
    """Bytes are scaled to [0, 1]; the same values as numbers of another type predict the same."""
    rows = np.random.default_rng(0).integers(0, 256, (90, 7))
    labels = rows[:, 0] > 127
    estimator = small(max_iter=10).fit(rows.astype(np.uint8), labels)
    as_bytes = estimator.predict_proba(rows.astype(np.uint8))
    np.testing.assert_allclose(estimator.predict_proba(rows), as_bytes, rtol=1e-4)
    scaled = small(max_iter=10, scale=(0, 255)).fit(rows, labels)
    np.testing.assert_allclose(scaled.predict_proba(rows), as_bytes, rtol=1e-3)
    unscaled = small(max_iter=10, scale=None).fit(rows.astype(np.uint8), labels)
    assert not np.allclose(unscaled.predict_proba(rows), as_bytes, rtol=0.01)


def test_labels_frames_and_copies(capsys: pytest.CaptureFixture[str]) -> None:
    """Text labels, pandas' names, pickles, clones and joblib work; `verbose` prints epochs."""
    rows, labels = blobs()
    frame = pd.DataFrame(rows, columns=[f"column {number}" for number in range(5)])
    names = np.array(["one", "two", "three"])[labels]
    estimator = small(verbose=True, max_iter=30, learning_rate_init=0.1, early_stopping=True)
    estimator.fit(frame, pd.Series(names))
    assert list(frame.columns) == list(estimator.feature_names_in_)
    assert ["one", "three", "two"] == list(estimator.classes_)
    assert estimator.score(frame, names) > 0.8
    assert "Epoch 1 of 30: loss 1." in (printed := capsys.readouterr().out)
    assert ", validation accuracy 0." in printed
    for copy in (pickle.loads(pickle.dumps(estimator)), _through_joblib(estimator)):
        assert np.array_equal(copy.predict_proba(frame), estimator.predict_proba(frame))
    with pytest.raises(NotFittedError):
        clone(estimator).predict(frame)
    logarithms = estimator.predict_log_proba(frame)
    np.testing.assert_allclose(np.exp(logarithms), estimator.predict_proba(frame), rtol=1e-5)


def _through_joblib(estimator: MLPClassifier) -> MLPClassifier:
    with tempfile.TemporaryFile() as file:
        joblib.dump(estimator, file)
        file.seek(0)
        return joblib.load(file)


def test_refused_data(tmp_path: Path) -> None:
    """Sparse arrays, labels beside a dataset, a missing one; a diverged training is not fitted."""
    rows, labels = blobs()
    with pytest.raises(TypeError, match="dense data is required"):
        small().fit(sparse.csr_array(rows), labels)
    with pytest.raises(ValueError, match="leave y out"):
        small().fit(str(tmp_path), labels)
    with pytest.raises(BadDataError, match="no dataset"):
        small().fit(tmp_path / "none")
    estimator = small().fit(rows, labels)
    with pytest.raises(ValueError, match="X has values that are too large"):
        estimator.predict(rows * 1e300)  # more than float32 holds
    with pytest.raises(ValueError, match="smaller learning_rate_init"):
        estimator.set_params(solver="sgd", learning_rate_init=1e5).fit(rows * 1e9, labels)
    with pytest.raises(NotFittedError):
        estimator.predict(rows)


def test_search_in_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline is validated across folds; no files are left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows, labels = blobs()
    steps = make_pipeline(StandardScaler(), small(max_iter=20, learning_rate_init=0.1))
    assert cross_val_score(steps, rows, labels, cv=3).mean() > 0.8
    assert [] == list(tmp_path.iterdir())


@pytest.mark.slow
def test_search_in_processes() -> None:
    """A grid search in two processes, each with a fork for gradients, has the result of one."""
    rows, labels = blobs(600)
    grid = {"alpha": np.logspace(-3, 0, 2), "hidden_layer_sizes": [(5,), (20, 5)]}
    estimator = small(batch_size=150, n_jobs=2, max_iter=10)
    searches = [GridSearchCV(estimator, grid, cv=2, n_jobs=n_jobs) for n_jobs in (1, 2)]
    one, two = (search.fit(rows, labels) for search in searches)
    assert one.best_params_ == two.best_params_
    assert np.array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    assert one.best_estimator_.model_digest_ == two.best_estimator_.model_digest_
