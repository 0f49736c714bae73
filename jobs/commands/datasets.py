"""The commands of datasets: ingest, inspect, verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.commands import completion, options
from jobs.commands.sections import Choice, Command, IntRange, option
from jobs.commands.source_options import read_class_names, source_options
from jobs.output import one_line
from jobs.signals import stop_on_signals
from storage.errors import BadDataError, UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from pipeline.plan import Scaling
    from storage.location import TakeOver

DATA_ROOT = "data"
STOPPED = "Stopped; nothing was published. Run the same command to start again."


@click.command(cls=Command)
@click.argument("source", default="mnist", shell_complete=completion.sources)
@option(
    "--out",
    "-o",
    section="Data",
    metavar="PLACE",
    shell_complete=completion.directories,
    show_default="data/ and the source's name",
    help="Path or URL of the dataset.",
)
@option("--overwrite", section="Data", is_flag=True, help="Replace an existing dataset.")
@option(
    "--compression",
    section="Data",
    advanced=True,
    type=Choice(["lz4", "lz4hc", "zstd"]),
    show_default="lz4",
    help="lz4 is read fastest; zstd is a quarter smaller; lz4hc is nearly both, but slow to write.",
)
@option(
    "--rows-per-chunk",
    section="Data",
    advanced=True,
    type=IntRange(1),
    metavar="N",
    show_default="about 1.5 MB of rows",
    help="Rows stored and read together.",
)
@option(
    "--scale",
    section="Data",
    metavar="LOW,HIGH",
    show_default="0,255 for bytes, otherwise the range of the training rows",
    help="Values that training maps to 0 and 1; none keeps the values unchanged.",
)
@option(
    "--transpose",
    section="Data",
    is_flag=True,
    default=None,
    help="Swap height and width of every image, as EMNIST needs.",
)
@option(
    "--class-names",
    section="Data",
    metavar="FILE",
    shell_complete=completion.files,
    show_default="the source's, or the labels",
    help="Text file with the names of the classes, one a line, in the order of their labels.",
)
@option(
    "--arrays",
    section="Source",
    multiple=True,
    metavar="SPLIT=IMAGES,LABELS",
    help="Names of a split's arrays in an .npz file, such as train=x,y; repeatable.",
)
@option(
    "--label",
    section="Source",
    metavar="COLUMN",
    show_default="label, or the like",
    help="Column with the labels, in CSV and Parquet files: its name, or its number from 0 in a "
    "CSV file without a header.",
)
@option(
    "--shape",
    section="Source",
    metavar="HxW",
    show_default="a square",
    help="Height and width of images that are rows of values; HxWxC for C channels.",
)
@option(
    "--resize",
    section="Source",
    metavar="HxW",
    show_default="all must have the same size",
    help="Resize pictures to this height and width, by bicubic interpolation.",
)
@option(
    "--channels",
    section="Source",
    type=Choice(["grey", "rgb"]),
    show_default="grey",
    help="Convert pictures to shades of grey, or keep three colours.",
)
@option(
    "--holdout",
    section="Source",
    type=IntRange(1),
    metavar="N",
    help="Make a test split of N pictures, drawn at random from a folder without splits.",
)
@option(
    "--shuffle",
    section="Source",
    is_flag=True,
    help="Store pictures in random order instead of that of their names.",
)
@option(
    "--seed",
    section="Source",
    advanced=True,
    default=0,
    type=IntRange(0),
    metavar="N",
    help="Random seed of synthetic digits, --holdout and --shuffle.",
)
@options.storage
@options.take_over
@options.cluster
@options.output
def ingest(
    console: "Console",
    source: str,
    out: str | None,
    scale: str | None,
    class_names: str | None,
    storage_options: tuple[str, ...],
    take_over: "TakeOver | None",
    **asked: Any,
) -> "Report":
    """Convert image files to a chunked, checksummed dataset.

    SOURCE is a path or s3:// URL of IDX, NumPy, CSV or Parquet files or of a folder of pictures;
    mnist (the default), fashion-mnist or kmnist, which are downloaded; or synthetic[:TRAIN[,TEST]]
    for generated digits.
    """
    from jobs.commands.dataset_reports import ingest_report
    from pipeline.ingest import ingest as run_ingest
    from pipeline.sources.remote import opened_source
    from storage.places import is_url_of_store, open_location
    from storage.preparation import parse_range

    try:
        scaling: Scaling = None if scale is None else parse_range(scale) or "none"
    except ValueError as error:
        raise UsageError(f"--scale is {scale!r}; {error}.") from None
    chosen, names = source_options(asked), read_class_names(class_names)
    store = options.store_options(storage_options, source, out)
    place = None if out is None else open_location(out, store)  # refused before downloads
    given = open_location(source, store) if is_url_of_store(source) else source
    with stop_on_signals() as stop, options.cluster_of("ingest", asked, stop) as cluster:

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            console.progress(stage, done, total, note)
            stop.check(STOPPED)

        with opened_source(given, chosen, progress) as opened:
            result = run_ingest(
                opened,
                place or f"{DATA_ROOT}/{opened.name}",
                rows_per_chunk=asked["rows_per_chunk"],
                compression=asked["compression"],
                class_names=names,
                scale=scaling,
                transpose=asked["transpose"],
                overwrite=asked["overwrite"],
                take_over=take_over,
                progress=progress,
                cluster=cluster(),
            )
    if unused := [name for name in names or () if name not in result.dataset.class_names]:
        console.warn(
            f"No image has the class {unused[-1]!r}, which {class_names} names. Check that its "
            "first line is the first class."
        )
    return ingest_report(result)


@click.command(cls=Command)
@click.argument("place", shell_complete=completion.inspected)
@option(
    "--images",
    metavar="FILE.png",
    shell_complete=completion.files,
    help="Write a picture of the first images of a dataset.",
)
@option(
    "--distort",
    metavar="NAME",
    shell_complete=completion.distortions,
    help="Show images in the picture as training sees them with digits, the distortions of a "
    "recipe, or those of a TOML file.",
)
@options.storage
@options.output
def inspect(
    console: "Console",
    place: str,
    images: str | None,
    distort: str | None,
    storage_options: tuple[str, ...],
) -> None:
    """Show the contents of a dataset, a run or an exported model.

    PLACE is its path or URL.
    """
    from jobs.commands.dataset_reports import inspect_location

    location = options.location_of(place, storage_options)
    if images is None and distort is not None:
        raise UsageError("--distort needs a picture to write: add --images FILE.png.")
    if images is None:
        console.result(inspect_location(location))
        return
    from jobs.commands.pictures import check_picture, write_examples

    check_picture(Path(images))
    report = inspect_location(location)
    if report.document["kind"] != "dataset":
        raise UsageError(f"--images needs a dataset; {place} is a {report.document['kind']}.")
    write_examples(location, Path(images), distort or "none")
    console.result(report)
    console.say(f"\nImages in {images}")


@click.command(cls=Command)
@click.argument("place", shell_complete=completion.datasets_and_runs)
@options.storage
@options.output
def verify(console: "Console", place: str, storage_options: tuple[str, ...]) -> None:
    """Read a whole dataset or run and check every digest.

    PLACE is its path or URL.
    """
    from jobs.commands.console import Report
    from jobs.commands.dataset_reports import check_dataset_or_run
    from storage.verify import verify_location

    location = options.location_of(place, storage_options)
    check_dataset_or_run(location)
    mentioned: list[str] = []
    checked = list(verify_location(location, mentioned.append))
    wrong = [{"what": check, "error": str(error)} for check, error in checked if error is not None]
    verdicts = [item["error"] for item in wrong] or [f"{place} is sound: {len(checked):,} checks."]
    document = {"place": place, "checked": len(checked), "wrong": wrong, "mentioned": mentioned}
    text, summary = ("\n".join(map(one_line, lines)) for lines in (mentioned + verdicts, verdicts))
    details = "\n".join(one_line(f"checked {check}") for check, _ in checked)
    console.result(Report(document, text, summary, details))
    if wrong:
        raise BadDataError(f"{place} is damaged: {len(wrong)} of {len(checked):,} checks failed.")
