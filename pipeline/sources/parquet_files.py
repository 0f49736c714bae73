"""The format Parquet: pictures with labels as the Hugging Face Hub has them, or rows of values.

The files of a directory form one set. The split is in the name of a file (`train-00000-of-00001`)
or of a folder (`train/0000`); several files of a split are its shards, in natural order.
"""

import json
import logging
import os
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.array_split import source_of_values
from pipeline.sources.file_split import LABEL_NAMES
from pipeline.sources.formats import Format, Source, SourceOptions, directory_name
from pipeline.sources.parquet_labels import is_label, number_texts
from pipeline.sources.parquet_split import Layout, ParquetSplit, import_pyarrow, open_file
from pipeline.sources.splits import SPLIT_OF, in_natural_order, in_order, split_named
from storage.errors import BadDataError, UsageError, did_you_mean, listed
from storage.events import Progress

MAGICS = (b"PAR1", b"PARE")
"""The first bytes of a file, and of one whose metadata is encrypted."""
ENDINGS = (".parquet", ".pq")
IMAGE_NAMES = ("image", "images", "img", "picture", "pixels")
"""Usual names of the column with the images, in lower case."""
MOST_LOOKED_INTO = 1_000
"""Directories to search for Parquet files."""
FEWEST_PIXELS = 4
"""With fewer columns of values, a table does not hold images."""
_INDEX = re.compile(r"__index_level_\d+__|index|(?:image_?)?id|row", re.IGNORECASE)
"""Columns that number the rows; pandas writes the first kind."""
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)

logger = logging.getLogger(__name__)


def open_parquet(path: Path, options: SourceOptions, progress: Progress) -> Source:
    """Open a Parquet file, or those of a directory, and read all labels; see `Format.open`."""
    import_pyarrow()
    files = _split_files(path) if path.is_dir() else {_split_of_file(path): [path]}
    layouts = {split: _layout_of(paths, options) for split, paths in files.items()}
    _check_options(path, next(iter(layouts.values())), options)
    splits = [
        ParquetSplit(split, paths, path, layouts[split], options) for split, paths in files.items()
    ]
    for split in splits:
        split.scan_labels(progress)
    names = number_texts([split.labels for split in splits if split.labels is not None])
    names = names or next((layout.class_names for layout in layouts.values()), None)
    name = directory_name(path) if path.is_dir() else _name_of(path)
    source = source_of_values(name, splits, f"Parquet files in {path}", progress)
    return replace(source, class_names=names)


# Files.


def _parquet_files(directory: Path) -> list[Path]:
    """Return the files below a directory in natural order, without hidden ones."""
    paths = []
    for place, folders, names in islice(os.walk(directory), MOST_LOOKED_INTO):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            os.path.join(place, name)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith((".", "_"))
        ]
    return [Path(path) for path in in_natural_order(paths)]


def _split_files(directory: Path) -> dict[str, list[Path]]:
    """Return the files of each split; raise `BadDataError` unless they form one set."""
    by_split: dict[str, list[Path]] = {}
    sets = set()
    for path in _parquet_files(directory):
        *folders, _ = path.relative_to(directory).parts
        of_folders = (split_named(folder) for folder in reversed(folders))
        split = split_named(path.stem) or next(filter(None, of_folders), "")
        by_split.setdefault(split, []).append(path)
        words = [folder for folder in folders if folder != "data" and not split_named(folder)]
        sets.add("/".join(filter(None, [*words, _words_before_split(path)])))
    if len(sets) > 1:
        names = listed([name or "." for name in sorted(sets)])
        raise BadDataError(
            f"{directory} has Parquet files of several sets ({names}); expected one. Give the "
            "directory of one set, or move the others elsewhere."
        )
    if list(by_split) == [""]:
        by_split = {"train": by_split[""]}
    elif "" in by_split:
        raise BadDataError(
            f"{by_split[''][0]} has no split in its name, but other files have; expected names "
            "such as train-0.parquet and test-0.parquet. Rename it, or move it elsewhere."
        )
    for paths in by_split.values():
        _check_shards(paths)
    return in_order(by_split)


def _check_shards(paths: list[Path]) -> None:
    """Raise `BadDataError` for a missing file of those that are numbered `00000-of-00002`."""
    for path in paths:
        if match := _SHARD.fullmatch(path.stem):
            for number in range(min(int(match["count"]), len(paths) + 1)):
                name = f"{match['stem']}-{number:05}-of-{match['count']}{path.suffix}"
                if not path.with_name(name).exists():
                    raise BadDataError(
                        f"{path.with_name(name)} is missing, one of {int(match['count']):,} files "
                        "of its split. Add it and run the command again."
                    )


def _split_of_file(path: Path) -> str:
    parent = Path(os.path.abspath(path)).parent.name.lower()
    return split_named(path.stem) or SPLIT_OF.get(parent, "train")


def _words_before_split(path: Path) -> str:
    """Return the part of a file's name before its split, such as `emnist-letters`."""
    words = re.split(r"([^A-Za-z0-9]+)", path.stem)
    place = next((n for n, word in enumerate(words) if word.lower() in SPLIT_OF), 0)
    return "".join(words[: max(0, place - 1)])


def _name_of(path: Path) -> str:
    """Return the part of a file's name before its split, or the name of its directory."""
    if split_named(path.stem) is None and not path.stem.isdecimal():
        return path.stem
    return _words_before_split(path) or directory_name(Path(os.path.realpath(path)).parent)


# Columns.


def _layout_of(paths: list[Path], options: SourceOptions) -> Layout:
    """Return the layout of a split's files; raise `BadDataError` if they differ."""
    first = _layout(paths[0], options)
    for path in paths[1:]:
        if (layout := _layout(path, options)) != first:
            raise BadDataError(
                f"{path} has {layout}, but {paths[0]} has {first}; expected the same columns in "
                "all files of a split. Write them alike, or move one elsewhere."
            )
    return first


def _layout(path: Path, options: SourceOptions) -> Layout:
    with open_file(path) as file:
        schema = file.schema_arrow
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise BadDataError(f"{path} has two columns {twice!r}; expected different names.")
    features = _features(schema.metadata)
    label = _label(path, schema, features, options.label)
    fields = [field for field in schema if field.name != label and not _INDEX.fullmatch(field.name)]
    images, image_type, dtype = _images(path, fields)
    if label is None and len(images) == 1 and len(fields) > 1:
        others = [field.name for field in fields if field.name != images[0]]
        logger.warning(
            "%s has no column of labels: none is named %s. If one of %s has them, pass --label.",
            path,
            " or ".join(LABEL_NAMES[:3]),
            listed([*map(repr, others)]),
        )
    return Layout(images, image_type, dtype, label, _class_names(features.get(label)))


def _features(metadata: dict[bytes, bytes] | None) -> dict[str | None, Any]:
    """Return the description of each column that the library datasets wrote; none if it did not."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of a column of classes; None for any other, or if two are equal."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        return None
    is_usable = all(isinstance(name, str) and name.strip() and name.isprintable() for name in names)
    return tuple(names) if is_usable else None


def _label(
    path: Path, schema: Any, features: dict[str | None, Any], asked: str | None
) -> str | None:
    """Return the column of the labels: the asked one, that of the classes, or a usual name."""
    if asked is not None and asked not in schema.names:
        raise UsageError(
            f"{path} has no column {asked!r}, which --label names."
            f"{did_you_mean(asked, schema.names)} Its columns are {_columns(schema)}."
        )
    classes = [name for name in schema.names if _class_names(features.get(name))]
    if asked is None and len(classes) > 1:
        raise BadDataError(
            f"{path} has several columns of classes: {listed(classes)}. Choose one by --label."
        )
    by_name = {name.lower(): name for name in reversed(schema.names)}
    usual = [by_name[name] for name in LABEL_NAMES if name in by_name]
    label = next(iter([asked] if asked is not None else classes + usual), None)
    if label is not None and not is_label(import_pyarrow(), schema.field(label).type):
        raise BadDataError(
            f"{path}: column {label!r} has the type {str(schema.field(label).type)[:80]}; expected "
            "labels, whole numbers or text. Name the column of the labels by --label."
        )
    return label


def _images(path: Path, fields: list[Any]) -> tuple[tuple[str, ...], str, str | None]:
    """Return the columns of images, their type, and the element type of values."""
    columns = {field.name: field.type for field in fields if _holds_images(field.type)}
    usual = {name: columns[name] for name in columns if name.lower() in IMAGE_NAMES}
    if len(columns) > 1 and len(usual) == 1:
        columns = usual
    if len(columns) > 1:
        raise BadDataError(
            f"{path} has several columns that may hold images: {', '.join(columns)}; expected one, "
            "or one named image. Write a file without the others."
        )
    for name, column_type in columns.items():
        return (name,), str(column_type), _element_type(column_type)
    types = [_element_type(field.type) for field in fields]
    if len(fields) < FEWEST_PIXELS or not all(types):
        raise BadDataError(
            f"{path} has no column of images among {_columns(fields) or 'its columns'}; expected "
            "pictures (binary, or a struct of bytes and path), lists of numbers, or a column of "
            "numbers for each pixel. Write the images into the file: paths of pictures are not "
            "followed."
        )
    dtype = np.result_type(*filter(None, types))
    return tuple(field.name for field in fields), f"columns of {dtype}", str(dtype)


def _holds_images(column_type: Any) -> bool:
    """Return whether a column has pictures, or lists of numbers."""
    types = import_pyarrow().types
    if types.is_struct(column_type):
        number = column_type.get_field_index("bytes")
        return number >= 0 and _is_binary(column_type.field(number).type)
    return _is_binary(column_type) or (
        types.is_nested(_storage(column_type)) and _element_type(column_type) is not None
    )


def _is_binary(column_type: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_binary(column_type) or types.is_large_binary(column_type))


def _storage(column_type: Any) -> Any:
    return getattr(column_type, "storage_type", column_type)


def _element_type(column_type: Any) -> str | None:
    """Return the element type of numbers, or lists of them, as NumPy names it; else None."""
    types = import_pyarrow().types
    value_type = _storage(column_type)
    while (
        types.is_list(value_type)
        or types.is_large_list(value_type)
        or types.is_fixed_size_list(value_type)
    ):
        value_type = value_type.value_type
    is_number = types.is_integer(value_type) or types.is_floating(value_type)
    if is_number or types.is_boolean(value_type):
        return str(np.dtype(value_type.to_pandas_dtype()))
    return None


def _columns(fields: Any) -> str:
    """Return the names and types of columns, for messages."""
    return listed([f"{field.name} ({str(field.type)[:40]})" for field in fields])


def _check_options(path: Path, layout: Layout, options: SourceOptions) -> None:
    """Raise `UsageError` for an option that does not apply to the images."""
    if layout.dtype is None and options.shape is not None:
        raise UsageError(
            f"--shape applies to images that are stored as values, but {path} has pictures. Leave "
            "it out, or pass --resize instead."
        )
    if layout.dtype is not None and (options.resize or options.channels):
        name = "resize" if options.resize else "channels"
        raise UsageError(
            f"--{name} applies to pictures, but {path} has values in {layout}. Leave it out."
        )


def _recognises(path: Path, start: bytes) -> bool:
    """Recognise a file by its first bytes or its name."""
    if path.is_dir():
        return bool(_parquet_files(path))
    return start.startswith(MAGICS) or path.name.lower().endswith(ENDINGS)


FORMAT = Format(
    name="a file or directory of Parquet",
    recognises=_recognises,
    open=open_parquet,
    options=frozenset({"label", "shape", "resize", "channels"}),
)
