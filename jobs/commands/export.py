"""The command export: a model as a file that other programs can use."""

from pathlib import PurePath
from typing import TYPE_CHECKING

import click

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_RUN
from jobs.commands import completion, options
from jobs.commands.sections import Command, option
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from jobs.exports.job import Export
    from storage.location import Location


@click.command(cls=Command)
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=completion.runs)
@option(
    "--to",
    required=True,
    metavar="FILE",
    shell_complete=completion.files,
    help="Path or URL of the file to write: .onnx, .safetensors or .py.",
)
@option("--overwrite", is_flag=True, help="Replace an existing file.")
@options.sweep
@options.checkpoint
@options.average_shifts
@options.promoted
@options.models
@options.dataset
@options.provenance
@options.storage
@options.output
def export(
    _: "Console",
    runs: tuple[str, ...],
    sweep: str | None,
    best: int | None,
    to: str,
    overwrite: bool,
    checkpoint: str | None,
    average_shifts: int | None,
    model: str | None,
    models: str,
    dataset: str | None,
    provenance: str | None,
    storage_options: tuple[str, ...],
) -> "Report":
    """Export a model to a file that other programs can use.

    RUN is the path or URL of a run, by default runs/mnist; the models of several runs are averaged,
    and RUN@CHECKPOINT chooses a checkpoint of one. The ending of the file chooses the format:

    \b
    .onnx         a graph from raw images to class, opset 13 (extra onnx)
    .safetensors  the parameters, and metadata that describe them
    .py           a Python module that needs NumPy alone

    Before the file is written, its predictions are compared with the model's on up to 10,000 test
    rows of the dataset, if that can be opened. If they differ, no file is written (exit code 3).
    """
    from jobs.exports.job import checked_ending
    from jobs.exports.job import export as run_export
    from jobs.exports.provenance import statement, statement_file, subject
    from jobs.training.model import Model
    from storage.documents import document_bytes

    checked_ending(to)
    if model is not None and (runs, checkpoint, average_shifts) != ((), None, None):
        raise UsageError("--model determines run, checkpoint and shifts; leave them out.")
    places = () if model is not None else (*runs, sweep, to, dataset, provenance)
    store = options.store_options(storage_options, *places)
    asked = {"run": runs, "sweep": sweep, "best": best, "model": model}
    chosen = Model.load(
        options.chosen_runs(asked, store) or DEFAULT_RUN,
        checkpoint or DEFAULT_CHECKPOINT,
        store,
        average_shifts,
        model=model,
        models=models,
    )
    origin = None
    if provenance is not None:  # so that an error of the statement leaves no file
        file = statement_file(provenance, store)
        origin = statement(chosen, {}, dataset=dataset, storage_options=store)
    result = run_export(chosen, to, dataset=dataset, overwrite=overwrite, storage_options=store)
    if origin is not None:
        origin["subject"].append(subject(PurePath(str(result.file)).name, result.sha256))
        file.write_object(document_bytes(origin))
    return export_report(result)


def export_report(result: "Export") -> "Report":
    """Report an export: the file, and how its predictions differ from the model's."""
    from dataclasses import asdict

    from jobs.commands.console import Report
    from jobs.commands.tables import SHORT_DIGEST, facts, size

    comparison, note = result.comparison, ""
    if isinstance(comparison, str):
        checks, note = None, comparison
    else:
        checks = asdict(comparison)
        classes = "the same class for all"
        if comparison.ties:
            classes = f"the same class for all but {comparison.ties:,} ties"
        note = (
            f"{comparison.rows:,} {comparison.split} rows: {classes}, largest difference "
            f"{comparison.largest_difference:.1e}"
        )
    document = {
        "file": str(result.file),
        "bytes": result.size,
        "sha256": result.sha256,
        "model_digest": result.model_digest,
        "comparison": checks,
        "note": None if checks else note,
    }
    digest = result.model_digest[:SHORT_DIGEST]
    summary = f"Model {digest} in {result.file}, {size(result.size)}"
    details = facts([("model", result.model_digest)])
    return Report(document, f"{summary}\n{note}", summary, details)


def inspect_export(file: "Location") -> "Report":
    """Report the description of an exported model; raise `BadDataError` if it is damaged."""
    from jobs.commands.console import Report
    from jobs.commands.tables import SHORT_DIGEST, facts
    from jobs.exports.contents import preparation_of
    from jobs.exports.job import read_export
    from jobs.output import average_text

    description = read_export(file).description
    members = description["members"]
    images = " x ".join(f"{size:,}" for size in description["image_shape"])
    preparation = preparation_of(description, str(file))
    average = average_text(len(members), description["average_shifts"])
    names = dict.fromkeys(f"{member['network']}, {member['dtype']}" for member in members)
    pairs = [
        ("model", f"{description['model_digest'][:SHORT_DIGEST]} in {file}"),
        *([("average", average.removeprefix("average "))] if average else []),
        *(("network", name) for name in names),
        ("images", f"{images} {description['element_type']}, {preparation}"),
        ("classes", ", ".join(description["class_names"])),
    ]
    document = {"kind": "model", "location": str(file), **description}
    digests = [("model", description["model_digest"])]
    digests += [(f"member {number}", member["digest"]) for number, member in enumerate(members)]
    summary = f"Model {description['model_digest']} in {file}"
    return Report(document, facts(pairs), summary, "\ndigests\n" + facts(digests))
