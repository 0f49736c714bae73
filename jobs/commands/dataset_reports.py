"""Reports on datasets and ingest, for scripts and for people."""

from collections.abc import Sequence
from typing import Any

from jobs.choices import EXPORT_ENDINGS
from jobs.commands.console import Report
from jobs.commands.run_reports import inspect_run
from jobs.commands.tables import (
    SHORT_DIGEST,
    SHOWN_CLASSES,
    facts,
    fits,
    grid,
    size,
    table,
    terminal_width,
    width_of,
    wrap,
)
from jobs.output import one_line
from pipeline.findings import Findings
from pipeline.ingest import IngestResult
from storage.dataset import Dataset, open_dataset, replaced_sibling
from storage.errors import BadDataError, nearest_place
from storage.location import Location
from storage.runs import RECORD, open_run
from storage.schema import METADATA_NAME

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
