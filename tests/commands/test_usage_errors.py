"""Usage errors: exit code 2, one message with the likely correction, nothing written."""

import json
import os
from pathlib import Path

import pytest

from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused, run_pipeline
from tests.commands.sets import TRAIN_IMAGES, TRAIN_ROWS, tree

USAGE, BAD_DATA = 2, 3
TRAIN = ("train", *SMALL, "--run", "runs/new")
NIGHTLY = ("schedule", "0 3 * * *")

WRONG = [
    (("ingest", "mnst"), "Did you mean 'mnist'?"),
    (("ingest", f"files/{TRAIN_IMAGES}"), "is one file of a set", "Give 'files'"),
    (("ingest", "--out", ""), "empty"),
    (("ingest", "--out", "gs://bucket/set"), "gs:// URL"),
    (("ingest", "files", "--out", f"files/{TRAIN_IMAGES}/set"), "is not a directory"),
    (("ingest", "--rows-per-chunk", "0"), "--rows-per-chunk"),
    *(
        (("ingest", "nowhere", "--scale", text), f"--scale is {text!r}")
        for text in ("5,3", "0", "x,y", "nan,1")
    ),
    (("inspect",), "PLACE"),
    (("inspect", "data/mnist", "--images", "examples"), "examples", ".png"),
    (("inspect", "data/mnist", "--distort", "digits"), "add --images FILE.png"),
    (
        ("inspect", "data/mnist", "--images", "a.png", "--distort", "digit"),
        "Did you mean 'digits'?",
        "or a TOML file",
    ),
    (("demo", "one", "two"), "two"),
    (("demo", f"files/{TRAIN_IMAGES}"), "is not a directory"),
    (("train", "--network", "784-relu-8-softmax-26", "--run", "new"), "--network relu-8."),
    (("train", "--network", "784-gelu-8-softmax-10", "--run", "new"), "gelu"),
    ((*TRAIN, "--epochs", 0), "--epochs is 0"),
    ((*TRAIN, "--epochs", "ten"), "--epochs", "'ten'"),
    ((*TRAIN, "--batch-size", TRAIN_ROWS + 1), "--batch-size 301", "300 training rows"),
    ((*TRAIN, "--holdout", TRAIN_ROWS), "--holdout 300", "300 training rows"),
    ((*TRAIN, "--holdout", "0.2"), "--holdout", "'0.2' is not a whole number of rows"),
    ((*TRAIN, "--holdout", 200, "--batch-size", 101), "--batch-size 101", "100 training rows"),
    ((*TRAIN, "--patience", 3), "--patience", "--holdout"),
    ((*TRAIN, "--evaluate", "validation"), "no split 'validation'", "train,test"),
    ((*TRAIN, "--optimizer", "rprop"), "--optimizer", "adamw"),
    (("train", "--run", f"files/{TRAIN_IMAGES}/run", *SMALL), "is not a directory"),
    (("train", "--config", "absent.toml"), "no configuration file absent.toml"),
    (("score", "--threads", "-1"), "--threads"),
    (("score", "--split", "validation"), "'validation'", "--split", "train, test"),
    (("score", "--checkpoint", "newest"), "'newest'", "best, latest"),
    (("score", "--out", "scores.txt"), "'scores.txt'", ".csv, .npz or .parquet"),
    (("score", "--inbox", "i", "--split", "test"), "--split cannot be combined with --inbox"),
    (("score", "--inbox", "."), "The run is runs/mnist", "is inside the inbox"),
    (("score", "--inbox", "files", "--out", "files/{home}.csv"), "is inside the inbox"),
    (("score", "--model", "champion", "--checkpoint", "best"), "leave out --checkpoint"),
    (("score", "--best", 2), "--best requires --sweep"),
    (("score", "--sweep", "sweeps/a", "--run", "runs/mnist"), "--sweep cannot be combined with"),
    (("predict", "x.png", "--sweep", "s", "--model", "m"), "leave out --sweep"),
    (("promote", "--sweep", "s", "--best", "0", "--as", "m"), "--best", "0"),
    (("score", "--run", "runs/mnist", "--run", "runs/mnist@2"), "Name each model once"),
    (("score", "--max-drop", "2"), "--max-drop is 2.0", "0 to 1"),
    (("scores", "--since", "yesterday"), "--since", "12h"),
    (("scores", "--since", "999999w"), "--since", "12h"),
    (("promote",), "--as"),
    (("promote", "--as", "a/b"), "'a/b'"),
    (("promote", "--as", "unknown", "--undo"), "No model is called"),
    (NIGHTLY, "No command"),
    ((*NIGHTLY, "--", "sleep"), "'sleep' cannot be scheduled"),
    ((*NIGHTLY, "--", "pipeline", "score"), "Leave out the word 'pipeline'"),
    (("schedule", "0", "3", "*", "*", "*", "--", "score"), "Quote the five fields"),
    ((*NIGHTLY, "--", "schedule"), "'schedule' cannot be scheduled"),
    ((*NIGHTLY, "--", "score", "--inbx", "i"), "--inbx"),
    ((*NIGHTLY, "--", "score", "--log-json", "--inbx", "i"), "--inbx"),
    ((*NIGHTLY, "--heartbeat", "s3://b/x", "--", "score"), "path of a file"),
    ((*NIGHTLY, "--timezone", "Mars", "--", "score"), "Mars"),
    ((*NIGHTLY, "--to", "d", "--", "score"), "--print"),
    ((*NIGHTLY, "--print", "cron", "--dry-run", "--", "score"), "--dry-run cannot be combined"),
    ((*NIGHTLY, "--print", "cron", "--metrics-file", "x.prom", "--", "score"), "after the command"),
    (("schedule", "nightly", "--", "score"), "five"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: " ".join(map(str, case[0])))
def test_wrong_usage(
    case: tuple[tuple[object, ...], str], dataset: Path, run: Path, files: Path, call: Call
) -> None:
    """Each command line is refused before any work, even if only scheduled; nothing is written."""
    arguments, *words = case
    before = tree(files.parent)
    assert_refused(call(*arguments), USAGE, *words)
    assert before == tree(files.parent)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("learning_rat = 0.1", ("'learning_rat'", "Did you mean 'learning_rate'")),
        ("epochs = '3'", ("epochs", "'3'", "a whole number")),
        ("epochs = =", ("not valid TOML", "line 1")),
        ("epochs = 0", ("settings.toml gives epochs as 0",)),
    ],
)
def test_wrong_configuration_file(
    toml: str, words: tuple[str, ...], dataset: Path, call: Call
) -> None:
    """A configuration file with an unknown key, a wrong type or value is refused."""
    (dataset.parent.parent / "settings.toml").write_text(toml)
    assert_refused(call("train", "--config", "settings.toml"), USAGE, *words)
    assert not (dataset.parent.parent / "runs").exists()


def test_wrong_usage_in_a_process(here: Path) -> None:
    """The real command prints its usage, then the error."""
    refused = run_pipeline("train", "--bogus", cwd=here)
    assert_refused(refused, USAGE, "--bogus")
    assert refused.err.startswith("Usage: pipeline train [OPTIONS]\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "--threads", "many"), "'many' is not a valid integer"),
        (("score", "--inbx", "i"), "No such option"),
        (("train", "--hidden", "9"), "Did you mean '--network'?"),
        (("score", "--json"), "leave one of them out"),
        (("train", "--json"), "leave one of them out"),
        (("score", "--include", "*.gz"), "--include requires --inbox"),
        (("score", "--probabilities"), "--probabilities requires --out"),
        (("score", "--columns", "row"), "--columns requires --out"),
        (("score", "--out", "a.csv", "--columns", ""), "expected different names"),
        (("score", "--out", "a.csv", "--columns", "row,row"), "expected different names"),
        (("score", "--out", "a.npz", "--columns", "row"), "expected a .csv or .parquet"),
        (
            ("score", "--out", "a.csv", "--columns", "row", "--probabilities"),
            "add p_CLASS to --columns",
        ),
        (("score", "--inbox", "i", "--exclude", ""), "--exclude is empty"),
        (("score", "--storage-option", "a"), "has no key or no '='; expected KEY=VALUE"),
        (("schedule", "nightly", "--", "score"), "five"),
        ((*NIGHTLY, "--catch-up", "twice", "--", "score"), "'twice'"),
        ((*NIGHTLY, "--dry-run", "--", "score"), "cannot be combined"),
        ((*NIGHTLY, "--", "score", "--inbx", "i"), "No such option"),
        ((*NIGHTLY, "--", "score", "--min-accuracy", "97"), "is 97.0; expected"),
        ((*NIGHTLY, "--", "score", "--inbox", "i", "--out", "a.csv"), "{home}"),
    ],
    ids=str,
)
def test_log_of_wrong_usage(arguments: tuple[str, ...], words: str, call: Call) -> None:
    """A JSON log ends in one summary with the error, whether click or the command refuses it."""
    command, *others = arguments
    ended = call(command, "--log-json", *others)
    assert (USAGE, 1) == (ended.code, ended.err.count("Error: "))
    (summary,) = (json.loads(line) for line in ended.out.splitlines())
    assert ("summary", USAGE) == (summary["event"], summary["exit"])
    assert words in str(summary["error"])
    assert ended.err.endswith(f"Error: {summary['error']}\n")


MEANT = [
    (("trian",), "'train'"),
    (("Train",), "'train'"),
    (("fit",), "'train'"),
    (("evaluate",), "'score'"),
    (("train", "--epoch", "3"), "'--epochs'"),
    (("train", "--learn", "1"), "'--learning-rate'"),
    (("train", "--learning_rate", "1"), "'--learning-rate'"),
    (("train", "--Batchsize", "1"), "'--batch-size'"),
    (("train", "--bs", "1"), "'--batch-size'"),
    (("train", "--hidden", "100"), "'--network'"),
    (("train", "-e", "5"), "'--epochs'"),
    (("train", "--no-shufle"), "'--no-shuffle'"),
    (("train", "--optimizer", "adm"), "'adam'"),
    (("train", "--recipe", "quik"), "'quick'"),
    (("train", "--preset", "quick"), "'--recipe'"),
    (("train", "--distort", "Digits"), "'digits'"),
    (("train", "--augment", "digits"), "'--distort'"),
    (("train", "--schedule", "onecycle"), "'one-cycle'"),
    (("ingest", "--compression", "LZ4"), "'lz4'"),
    (("score", "-m", "x"), "'--model'"),
    (("help",), "'--help'"),
    (("train", "--evaluate", "tset"), "'test'"),
    (("train", "--config", "setings.toml"), "'settings.toml'"),
    (("score", "--checkpoint", "lates"), "'latest'"),
    (("score", "--model", "champon"), "'champion'"),
    ((*NIGHTLY, "--print", "cronn", "--", "score"), "'cron'"),
    (("train", "--weight-decay", "1"), "'--l2'"),
    (("train", "--init", "glorot"), "'glorot-normal'"),
    (("ingest", "--output", "x"), "'--out'"),
    ((*NIGHTLY, "--", "scroe"), "'score'"),
    ((*NIGHTLY, "--timezone", "Europe/Berln", "--", "score"), "'Europe/Berlin'"),
]


@pytest.mark.parametrize(("words", "meant"), MEANT, ids=" ".join)
def test_what_was_meant(
    words: tuple[str, ...], meant: str, dataset: Path, run: Path, call: Call
) -> None:
    """The message names the nearest command, option or value."""
    (run.parent.parent / "settings.toml").touch()
    if "--model" in words:
        assert 0 == call("promote", "--as", "champion").code
    assert_refused(call(*words), USAGE, f"Did you mean {meant}?")


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (("scores", "--run", "runs/a"), "pipeline scores [RUN]"),
        (("report", "--run", "runs/a"), "pipeline report RUN..."),
        (("ingest", "--source", "mnist"), "pipeline ingest [SOURCE]"),
    ],
    ids=" ".join,
)
def test_an_option_that_is_an_argument(words: tuple[str, ...], usage: str, call: Call) -> None:
    """A command that takes a place as an argument says so if it is given as an option."""
    assert_refused(
        call(*words), USAGE, f"No such option {words[1]!r}. Give it as an argument: {usage}"
    )


def test_no_gpu(call: Call) -> None:
    """Without an option for GPUs, the message names those for CPU cores."""
    assert_refused(call("train", "--gpu"), USAGE, "'--gpu'", "computes on CPU cores: see --threads")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("score", "--run", "runs/mnits"), "'runs/mnist'"),
        (("inspect", "run"), "'runs'"),
        (("verify", "data/mist"), "'data/mnist'"),
        (("train", "--dataset", "data/minst"), "'data/mnist'"),
    ],
    ids=" ".join,
)
def test_which_place_was_meant(
    words: tuple[str, ...], meant: str, dataset: Path, run: Path, call: Call
) -> None:
    """A message about a missing place names the nearest one beside it."""
    assert_refused(call(*words), BAD_DATA, f"Did you mean {meant}?")
    assert "Did you mean" not in call("score", "--run", "runs/xyz").err


@pytest.mark.parametrize(
    "words", [("xyzzy",), ("train", "-x"), ("train", "--xyzzy"), ("train", "--init", "xyzzy")]
)
def test_nothing_near(words: tuple[str, ...], call: Call) -> None:
    """A word unlike all known ones gets no suggestion."""
    ended = call(*words)
    assert_refused(ended, USAGE, "'")
    assert "Did you mean" not in ended.err


def test_a_demo_where_a_pipe_is(here: Path, call: Call) -> None:
    """The demo refuses an unusable directory before any download."""
    os.mkfifo(here / "pipe")
    assert_refused(call("demo", "pipe"), USAGE, "'pipe' is not a directory")
