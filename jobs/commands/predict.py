"""The command predict: the class of single pictures, and what the network saw of them."""

import sys
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_RUN
from jobs.commands import completion, options
from jobs.commands.sections import Command, option
from jobs.output import one_line, percent
from jobs.signals import stop_on_signals
from storage.errors import BadDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jobs.commands.console import Report
    from jobs.scoring.predict import Prediction
    from jobs.training.model import Model

BLOCKS = " ▄▀█"
"""The halves of a character that are inked: none, the lower, the upper, both."""
SHADES = " .:*#"
"""The same for encodings without half blocks: the mean of both halves."""
INKED = 96
"""The least grey level that is drawn as ink."""


@click.command(cls=Command)
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", shell_complete=completion.files
)
@options.model
@option(
    "--as-is",
    section="Data",
    is_flag=True,
    help="Do not prepare the pictures; they must have the size of the training images.",
)
@option(
    "--out",
    "-o",
    metavar="FILE",
    shell_complete=completion.files,
    help="Also write a .csv file with a row for each picture.",
)
@option(
    "--show",
    metavar="FILE",
    shell_complete=completion.files,
    help="Also write the pictures as the network saw them, one below the other, to a .png file.",
)
@options.storage
@options.output_flags
def predict(as_json: bool, quiet: bool, verbose: bool, **asked: Any) -> None:
    """Predict the class of photos, scans and drawings.

    FILE is a PNG, JPEG, WebP, BMP or TIFF picture of any size, or - for standard input. For models
    of digits in 28 x 28 pixels, pictures are prepared as those of MNIST were: the background is
    removed, and the digit is cropped, scaled into 20 x 20 pixels and centred by its mass. For all
    other models they are resized, with their proportions, and padded with their border's colour.

    A picture that is damaged, blank or shows several digits is reported; the others are still
    predicted, and the exit code is 3.
    """
    flags = {"as_json": as_json, "quiet": quiet, "verbose": verbose}
    with stop_on_signals() as stop, options.console_of(False, counting=False, **flags) as console:
        from jobs.scoring import predict as job

        names = ("sweep", "models", "out", "show")
        places = [*asked["files"], *asked["run"], *(asked[name] for name in names)]
        # A promoted name records the run's place, which may be in a store.
        checked = [] if asked["model"] is not None else places
        store = options.store_options(asked["storage_options"], *checked)
        outputs = {
            option: job.output_file(asked[option], f"--{option}", ending, asked["files"], store)
            for option, ending in (("out", ".csv"), ("show", ".png"))
            if asked[option] is not None
        }
        model = _load_model(asked, store)
        results = []
        pictures = job.predict_pictures(
            model, asked["files"], as_is=asked["as_is"], storage_options=store
        )
        for result in pictures:
            stop.check("Stopped.")
            results.append(result)
        predictions = [result for result in results if isinstance(result, job.Prediction)]
        failures = [result for result in results if not isinstance(result, job.Prediction)]
        if "out" in outputs:
            job.write_predictions(outputs["out"], results, model)
        if "show" in outputs and predictions:
            job.write_seen(outputs["show"], predictions)
        if predictions:
            console.result(_report(results, model))
        if len(results) == 1 and failures:
            raise failures[0][1]
        for _, error in failures:
            console.warn(str(error))
        if failures:
            raise BadDataError(
                f"{len(failures):,} of {len(results):,} pictures could not be predicted; the "
                "warnings above say why."
            )


def _load_model(asked: dict[str, Any], store: dict[str, str]) -> "Model":
    from jobs.training.model import Model

    return Model.load(
        options.chosen_runs(asked, store) or DEFAULT_RUN,
        asked["checkpoint"] or DEFAULT_CHECKPOINT,
        store,
        asked["average_shifts"],
        model=asked["model"],
        models=asked["models"],
    )


def _report(results: "list[Prediction | tuple[str, BadDataError]]", model: "Model") -> "Report":
    from jobs.commands.console import Report
    from jobs.scoring.predict import Prediction

    document: list[dict[str, Any]] = []
    lines, summaries = [], []
    for result in results:
        if not isinstance(result, Prediction):
            document.append({"file": one_line(result[0]), "error": str(result[1])})
            continue
        name, best = one_line(result.name), result.best(model.class_names)
        steps = result.picture.steps
        probabilities = zip(model.class_names, result.probabilities.tolist(), strict=True)
        document.append(
            {
                "file": name,
                "predicted": best[0][0],
                "probability": best[0][1],
                "probabilities": dict(probabilities),
                "prepared": list(steps),
            }
        )
        texts = [f"{one_line(label)} {percent(probability)}" for label, probability in best]
        summaries.append(f"{name}: {texts[0]}")
        lines.append(f"{name}: {', '.join(texts)} ({', '.join(steps) or 'as is'})")
        if sys.stdout.isatty():
            lines.append(drawn(result.picture.image, sys.stdout.encoding))
    return Report(
        document={"model_digest": model.digest, "pictures": document},
        text="\n".join(lines),
        summary="\n".join(summaries),
        details=f"model {model.digest}",
    )


def drawn(image: "NDArray[Any]", encoding: str) -> str:
    """Return an image as lines of characters that each show two pixels, one above the other.

    They are half blocks, or shades if the encoding has none. An image wider than the terminal is
    left out.
    """
    from jobs.commands.tables import terminal_width

    if image.shape[1] > terminal_width():
        return ""
    grey = image.reshape(*image.shape[:2], -1).mean(axis=2).tolist()
    if len(grey) % 2:
        grey.append([0] * len(grey[0]))
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        pairs = [zip(*grey[row : row + 2], strict=True) for row in range(0, len(grey), 2)]
        step = 256 / len(SHADES)
        return "\n".join(
            "".join(SHADES[int((upper + lower) / 2 / step)] for upper, lower in pair)
            for pair in pairs
        )
    return "\n".join(
        "".join(
            BLOCKS[2 * (upper >= INKED) + (lower >= INKED)]
            for upper, lower in zip(grey[row], grey[row + 1], strict=True)
        )
        for row in range(0, len(grey), 2)
    )
