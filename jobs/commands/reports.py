"""Reports on datasets, runs, ingest and training, for scripts and for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.choices import EXPORT_ENDINGS
from jobs.commands.console import Report
from jobs.commands.tables import (
    SHORT_DIGEST,
    SHOWN_CLASSES,
    facts,
    fit,
    fits,
    grid,
    settings_text,
    size,
    table,
    terminal_width,
    width_of,
    wrap,
)
from jobs.output import average_text, one_line, percent
from jobs.training.config import TrainConfig
from jobs.training.history import EpochTable, check_history
from jobs.training.select_checkpoint import snapshots
from pipeline.findings import Findings
from pipeline.ingest import IngestResult
from storage.checkpoints import CheckpointName, list_checkpoints, load_checkpoint, recorded_metrics
from storage.dataset import Dataset, open_dataset, replaced_sibling
from storage.errors import BadDataError, counted, nearest_place
from storage.location import Location
from storage.runs import METRICS, RECORD, SCORES, Run, open_run
from storage.schema import METADATA_NAME
from storage.scores import scoring_homes

if TYPE_CHECKING:
    from jobs.training.result import TrainResult


SHORT_NAME = 8
"""Longer names of classes are listed one a line."""
LOOKED_INTO = 100
"""The most directories that are searched for runs."""


def inspect_location(location: Location) -> Report:
    """Report on a dataset, a run or an exported model; raise `BadDataError` for anything else."""
    if str(location).endswith(EXPORT_ENDINGS) and location.is_object():
        from jobs.commands.export import inspect_export

        return inspect_export(location)
    check_dataset_or_run(location)
    if location.exists(RECORD):
        return inspect_run(open_run(location))
    return inspect_dataset(open_dataset(location))


def check_dataset_or_run(location: Location) -> None:
    """Raise `BadDataError` unless the location has the files of a dataset or of a run."""
    if not location.exists() and not replaced_sibling(location).exists():
        raise BadDataError(
            f"{location} does not exist.{nearest_place(str(location))} Give the directory of a "
            "dataset or of a run."
        )
    if location.exists() and not location.exists(RECORD) and not location.exists(METADATA_NAME):
        if any(location.exists(f"{name}/{RECORD}") for name in location.names()[:LOOKED_INTO]):
            raise BadDataError(
                f"{location} is a directory of runs. `pipeline runs {location}` lists them; give "
                "the directory of one."
            )
        if location.is_object():
            raise BadDataError(
                f"{location} is a file, neither a dataset nor a run. `pipeline inspect FILE` reads "
                f"exported models ({', '.join(EXPORT_ENDINGS)}) and checks their digests."
            )
        raise BadDataError(
            f"{location} is neither a dataset nor a run: it contains neither {METADATA_NAME} nor "
            f"{RECORD}. Give a directory created by `pipeline ingest` or `pipeline train`."
        )


def inspect_dataset(dataset: Dataset) -> Report:
    """Report splits, shapes, chunks, bytes, class counts, transforms and sources."""
    splits = {name: _split_document(dataset, name) for name in dataset.splits}
    document = {
        "kind": "dataset",
        "location": str(dataset.location),
        "name": dataset.name,
        "digest": dataset.digest,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "transforms": list(dataset.transforms),
        "compression": dataset.compression,
        "splits": splits,
        "sources": list(dataset.sources),
        "findings": dataset.findings,
    }
    findings = "\n".join(_findings(dataset))
    tree = [("Zarr group", str(dataset.tree))] if dataset.tree != dataset.location else []
    pairs = [
        ("dataset", f"{dataset.name} in {dataset.location}"),
        *tree,
        ("digest", dataset.digest[:SHORT_DIGEST]),
        ("images", f"{_shape(dataset.image_shape)}, {dataset.preparation}"),
        ("transforms", ", ".join(dataset.transforms)),
        ("compression", dataset.compression),
    ]
    header = ["split", "inputs", "targets", "dtype", "chunks", "stored", "decoded"]
    rows = [_split_row(*item) for item in splits.items()]
    parts = [
        facts(pairs),
        table(header, rows, left=("chunks",)),
        _class_counts(dataset.class_names, splits),
        findings and f"findings\n{findings}",
        _sources_table(dataset.sources),
    ]
    digests = [("dataset", dataset.digest)]
    digests += [(name, split["digest"]) for name, split in splits.items()]
    digests += [
        (source["name"], digest)
        for source in dataset.sources
        if (digest := digest_of_source(source))
    ]
    summary = f"{_rows_text(dataset)} in {dataset.location}"
    details = "\ndigests\n" + facts(digests)
    return Report(document, "\n\n".join(filter(None, parts)), summary, details)


def _findings(dataset: Dataset) -> list[str]:
    """Return a line for each thing that ingest noticed about the images."""
    findings = Findings.of(dataset)
    if findings is None:
        return []
    counts = {name: split.record.class_counts for name, split in dataset.splits.items()}
    texts = map(one_line, findings.sentences(dataset.class_names, counts))
    return ["\n    ".join(wrap(f"  {text}", terminal_width() - 4)) for text in texts]


def _class_counts(class_names: Sequence[str], splits: dict[str, Any]) -> str:
    """Return the rows of each class in each split, in as few lines as fit."""
    counts = {
        name: [f"{count:,}" for count in split["class_counts"]]
        for name, split in splits.items()
        if split["class_counts"]
    }
    if not counts:
        return ""
    if len(class_names) > SHOWN_CLASSES:
        return f"{len(class_names):,} classes; --json lists the rows of each."
    text = table(["class", *class_names], [[name, *texts] for name, texts in counts.items()])
    if fits(text):
        return text
    if max(map(width_of, class_names)) > SHORT_NAME:
        return table(["class", *counts], list(zip(class_names, *counts.values(), strict=True)))
    return "\n\n".join(
        f"{len(class_names):,} classes: rows in {name}\n"
        + grid([f"{label}: {text}" for label, text in zip(class_names, texts, strict=True)])
        for name, texts in counts.items()
    )


def digest_of_source(source: dict[str, Any]) -> str | None:
    """Return the digest of a file's decoded content, or that of the file itself."""
    return source.get("decoded_sha256") or source.get("stored_sha256")


def _sources_table(sources: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            *(source.get(name) for name in ("name", "split", "kind")),
            size(stored) if type(stored := source.get("stored_bytes")) is int else "-",
            (digest_of_source(source) or "-")[:SHORT_DIGEST],
        ]
        for source in sources
    ]
    header = ["source", "split", "kind", "stored", "SHA-256"]
    return table(header, rows, left=("split", "kind", "SHA-256"), wrapped=("source",))


def _split_document(dataset: Dataset, name: str) -> dict[str, Any]:
    split = dataset.splits[name]
    schema = split.schema
    return {
        "rows": schema.rows,
        "inputs_shape": [schema.rows, schema.columns],
        "targets_shape": [schema.rows, schema.classes] if schema.classes else None,
        "dtype": schema.dtype,
        "chunks": schema.chunks,
        "chunk_rows": schema.chunk_rows,
        "chunks_per_shard": schema.chunks_per_shard,
        "stored_bytes": sum(dataset.tree.child(name).sizes().values()),
        "decoded_bytes": schema.rows * schema.row_bytes,
        "class_counts": list(split.record.class_counts),
        "digest": split.record.digest,
    }


def _split_row(name: str, split: dict[str, Any]) -> list[str]:
    return [
        name,
        _shape(split["inputs_shape"]),
        _shape(split["targets_shape"] or []),
        split["dtype"],
        f"{split['chunks']} of {split['chunk_rows']:,} rows",
        size(split["stored_bytes"]),
        size(split["decoded_bytes"]),
    ]


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in sizes) or "-"


def inspect_run(run: Run) -> Report:
    """Report the configuration, epochs, checkpoints and scores of a run."""
    metrics = check_history(recorded_metrics(run), f"{run.location}/{METRICS}")
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    marked = snapshots(config, config.epochs)
    checkpoints = [
        _checkpoint_document(run, name, name in marked) for name in list_checkpoints(run)
    ]
    scores = scoring_homes(run.location.child(SCORES))
    failure = run.failure()
    document = {
        "kind": "run",
        "location": str(run.location),
        "configuration": run.configuration,
        "recipe": run.recipe,
        "parent": run.parent and {**run.parent, "place": run.parent_place},
        "failure": failure,
        "dataset_digest": run.dataset_digest,
        "versions": run.versions,
        "environment": run.environment,
        "epochs": metrics,
        "checkpoints": checkpoints,
        "scores": scores,
    }
    parts = [
        facts(
            [
                ("run", run.location),
                ("dataset", run.dataset_digest[:SHORT_DIGEST]),
                *([("recipe", run.recipe)] if run.recipe else []),
                *([("parent", _parent_text(run))] if run.parent else []),
                *run.environment.items(),
            ]
        ),
        "configuration\n" + settings_text(run.configuration),
        _epochs_text(metrics, run.configuration["epochs"]),
        _checkpoints_table(checkpoints) if checkpoints else "No checkpoint yet.",
    ]
    if failure:
        parts.append(
            "\n".join(wrap(f"The last training failed: {one_line(failure)}", terminal_width()))
        )
    if scores:
        parts.append("scores\n" + "\n".join(f"  scores/{name}" for name in scores))
    digests = [("dataset", run.dataset_digest)]
    digests += [("parent", run.parent["model_digest"])] if run.parent else []
    digests += [(item["name"], item["parameters_digest"]) for item in checkpoints if item["sound"]]
    epochs = f"{len(metrics)} of {counted(run.configuration['epochs'], 'epoch')}"
    accuracy = f", {_accuracy_text(metrics[-1]).lower()}" if metrics else ""
    summary = f"{run.location}: {epochs}{accuracy}"
    details = "\ndigests\n" + facts(digests)
    return Report(document, "\n\n".join(parts), summary, details)


def _parent_text(run: Run) -> str:
    """Return the checkpoint that a run was started from."""
    assert run.parent is not None
    return f"{run.parent_checkpoint}{' with its optimizer' if run.parent['optimizer'] else ''}"


def _checkpoint_document(run: Run, name: CheckpointName, is_snapshot: bool) -> dict[str, Any]:
    try:
        checkpoint = load_checkpoint(run, name)
    except BadDataError as error:
        return {"name": str(name), "sound": False, "error": str(error)}
    return {
        "name": str(name),
        "sound": True,
        "epoch": name.epoch,
        "step": name.step,
        "parameters_digest": checkpoint.parameters_digest,
        "snapshot": is_snapshot,
    }


def _checkpoints_table(checkpoints: list[dict[str, Any]]) -> str:
    rows = [
        [
            entry["name"],
            "sound, snapshot" if entry["snapshot"] else "sound",
            entry["parameters_digest"][:SHORT_DIGEST],
        ]
        if entry["sound"]
        else [entry["name"], "DAMAGED", entry["error"]]
        for entry in checkpoints
    ]
    return table(["checkpoint", "state", "model"], rows, ("state", "model"), wrapped=("model",))


def _epochs_text(metrics: list[dict[str, Any]], epochs: int) -> str:
    if not metrics:
        return "No epoch is finished yet."
    lines = EpochTable(epochs, list(metrics[0]["evaluation"]))
    return "\n".join([lines.header, *map(lines.row, metrics)])


def train_report(result: "TrainResult") -> Report:
    """Report a finished training run; text and summary name the model of the best epoch."""
    run, best, epochs = result.run.location, result.best, len(result.metrics)
    chosen = result.metrics[best.epoch - 1 if best else -1] if epochs else None
    digest = chosen["parameters_digest"] if chosen else result.parameters_digest
    document = {
        "run": str(run),
        "parent": result.run.parent_checkpoint,
        "epochs": list(result.metrics),
        "parameters_digest": result.parameters_digest,
        "order_digest": result.order_digest,
        "best": str(best) if best else None,
        "best_parameters_digest": digest if best else None,
        "already_done": result.already_done,
        "stopped_early": result.stopped_early,
        "configuration": result.config.to_json(),
    }
    lines = [f"{run} is already trained."] if result.already_done else []
    if result.stopped_early:
        patience = counted(result.config.patience, "epoch")
        lines.append(f"Stopped early: no lower validation loss in {patience}.")
    summary = f"model {digest[:SHORT_DIGEST]} in {run}"
    if chosen:
        rank = f", the best of {epochs:,}" if best and epochs > 1 else ""
        average = average_text(1, result.config.average_shifts if chosen["evaluation"] else 0)
        average = f", {average}" if average else ""
        epoch = f"after epoch {chosen['epoch']}{rank}{average}"
        summary = f"{_accuracy_text(chosen)} {epoch}; {summary}"
    last = [("last model", result.parameters_digest)] if best else []
    details = facts([("model", digest), *last, ("order", result.order_digest)])
    return Report(document, "\n".join([*lines, fit(summary)]), summary, details)


def _accuracy_text(line: dict[str, Any]) -> str:
    """Return an epoch's accuracies, or the training accuracy if no split was evaluated."""
    shares = {name: percent(split["accuracy"]) for name, split in line["evaluation"].items()}
    if len(shares) < 2:
        [(name, share)] = shares.items() or [("training", percent(line["accuracy"]))]
        return f"{name.capitalize()} accuracy {share}"
    return "Accuracy " + ", ".join(f"{share} ({name})" for name, share in shares.items())


def ingest_report(result: IngestResult) -> Report:
    """Report a finished ingest."""
    dataset = result.dataset
    document = inspect_dataset(dataset).document | {
        "already_done": result.already_done,
        "seconds": round(result.seconds, 3),
    }
    summary = f"{_rows_text(dataset)} in {dataset.location}, {result.seconds:.1f} s"
    if result.already_done:
        summary = f"{dataset.location} is already ingested from the same source."
    details = [*_findings(dataset), facts([("digest", dataset.digest)])]
    return Report(document, summary, summary, "\n".join(details))


def _rows_text(dataset: Dataset) -> str:
    rows = ", ".join(
        f"{split.schema.rows:,} {name}{'' if split.schema.classes else ' (no labels)'}"
        for name, split in dataset.splits.items()
    )
    return f"{dataset.name}: {rows} rows of {_shape(dataset.image_shape)}"
