"""The rule by which a file's name tells its split, its kind, and which labels go with which images.

Understood are the names of MNIST and of the sets that follow it: `train-images-idx3-ubyte`,
`t10k-labels.idx1-ubyte`, `emnist-letters-test-images-idx3-ubyte.gz`, `qmnist-test-labels-idx2-int`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

SPLITS = ("train", "validation", "test")
"""The splits of a dataset, in their order."""
COMPRESSIONS = ("", ".gz", ".xz")
"""The endings of one file in its forms, the one preferred first: raw needs no decompression."""
UNFINISHED = re.compile(
    r".*(\.part|\.partial|\.tmp|\.filepart|\.crdownload|\.download|\.swp|~)",
    re.IGNORECASE | re.DOTALL,
)
"""Names that copying and downloading programs give to what they have not finished."""

_SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
_TYPES = (
    "ubyte|uint8|u8|sbyte|byte|int8|i8|short|u?int16|i16|int|u?int32|i32|int64|i64|"
    "float|float32|f32|double|float64|f64"
)
_EXPECTED = re.compile(
    r"(?:(?P<prefix>[^.].*)[-_.])?"
    r"(?:(?P<split>train|test|t10k)[^-_.]*|(?P<validation>validation|valid|val|dev))"
    r"[-_.](?:image|label)s?"
    rf"[-_.]idx\d*(?:[-_.](?:{_TYPES}))?",
    re.IGNORECASE | re.DOTALL,
)
_KIND = re.compile(r"(image|label)s?(?!l?ed)", re.IGNORECASE)
"""A name's words for what the file holds; what is labelled, or is not, holds images."""
_FORMAT = re.compile(
    rf"idx(?P<dimensions>\d*)(?:[-_.](?:{_TYPES})\b)?|\b(?:{_TYPES})\b", re.IGNORECASE
)
_COPY = r"[ _-]*\(\d+\)|[ _-]+copy(?:[ _-]*\(?\d+\)?)?|\?[^/]*"
_ADDED = re.compile(
    rf"(?:copy of )?(?P<name>.*?)(?:{_COPY})?(?P<compression>\.gz|\.xz)?(?:\.\d+|{_COPY})?",
    re.IGNORECASE | re.DOTALL,
)
"""What wget, browsers and file managers add to the name of a second copy, or keep of a URL."""

_OTHER_ENDINGS = (
    "arw asc avi avif b2 bmp cff cfg cksum conf cr2 cr3 crc crc32 css csv ctl db dng doc docx "
    "done eml flac flag gif heic heif htm html ini ipynb jp2 jpeg jpg js json jsonl jxl lnk "
    "lock log m4v md md5 md5sum meta metadata mkv mov mp3 mp4 nef ods odt ogg ok org par2 "
    "parquet pdf pgm png ppm ppt pptx ps py raf ready rst rtf sfv sh sha sha1 sha1sum sha224 "
    "sha256 sha256sum sha384 sha512 sha512sum sig svg tex tif tiff toml torrent tsv txt url "
    "wav webloc webm webp xls xlsx xml yaml yml"
)
"""Endings of files that lie beside data: checksums, documents, tables, pictures, markers."""
_OTHER_NAMES = re.compile(
    r"_.*|#.*#|(?:md5|sha\d*|b2|b3|blake\d?|ck|check)sums?(?:\.gpg)?|readme.*|licen[cs]e.*|"
    r"copying|copyright|notice|authors|contributing|citation|install|version|changelog.*|"
    r"manifest.*|success|done|ready|complete|"
    r"(?:eh)?thumbs\.db.*|desktop\.ini|icon\r|makefile|dockerfile",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class IdxName:
    """A file's name, and what follows from it."""

    name: str
    base: str
    """The name without .gz or .xz."""
    prefix: str
    """What stands before the split, such as `emnist-letters`; often empty."""
    split: str | None
    """One of `SPLITS`; None where the name is not one of an IDX file with split and kind."""
    kind: str
    """`images` or `labels`."""
    says_kind: bool
    """Whether the name says so; what does not counts as images."""
    dimensions: int
    """The digit of `idx3`; 0 where there is none."""
    words: str
    """The words of the name but for kind, format and compression."""
    stem: str
    """The same for images and the labels that go with them: `words`, with one word for a split."""


def read_name(name: str) -> IdxName:
    """Return what a name says; a file that does not say that it holds labels holds images."""
    base = name.removesuffix(compression_of(name))
    kinds = _KIND.findall(base)
    kind = "labels" if kinds and kinds[-1].lower() == "label" else "images"
    digits = [match["dimensions"] for match in _FORMAT.finditer(base) if match["dimensions"]]
    rest = _KIND.sub("-", _FORMAT.sub("-", base)).lower()
    words = [word for word in re.split(r"[-_.\s]+", rest) if word]
    prefix, split = "", None
    if expected := _EXPECTED.fullmatch(base):
        prefix = expected["prefix"] or ""
        split = _SPLIT_OF[(expected["split"] or expected["validation"]).lower()]
    return IdxName(
        name=name,
        base=base,
        prefix=prefix,
        split=split,
        kind=kind,
        says_kind=bool(kinds),
        dimensions=int(digits[-1][:3]) if digits else 0,
        words="-".join(words),
        stem="-".join(_SPLIT_OF.get(word, word) for word in words),
    )


def choose_one(rivals: Sequence[IdxName]) -> IdxName | None:
    """Return which of several files of one stem and kind to read; None where nothing tells.

    A raw file comes before its compressed forms, and one label for each row (idx1) before a table
    (QMNIST's idx2-int).
    """
    if rivals[0].kind == "labels":
        fewest = min(rival.dimensions for rival in rivals)
        rivals = [rival for rival in rivals if rival.dimensions == fewest]
    if len({rival.base for rival in rivals}) > 1:
        return None
    return min(rivals, key=lambda rival: COMPRESSIONS.index(compression_of(rival.name).lower()))


def by_stem(names: Iterable[str]) -> dict[str, dict[str, list[IdxName]]]:
    """Return the names grouped by stem, then by kind."""
    groups: dict[str, dict[str, list[IdxName]]] = defaultdict(lambda: defaultdict(list))
    for idx_name in map(read_name, names):
        groups[idx_name.stem][idx_name.kind].append(idx_name)
    return groups


def tidied(name: str) -> str:
    """Return a name without what wget, browsers and file managers add to that of a second copy."""
    match = _ADDED.fullmatch(name)
    return name if match is None else match["name"] + (match["compression"] or "")


def nearest_role(name: str, dimensions: int | None) -> tuple[str, str] | None:
    """Return the split and kind that a name nearly says; None where it says no such thing.

    `dimensions` are those of a file whose content is IDX: then the name need not say so.
    """
    idx_name = read_name(tidied(name))
    near = (get_close_matches(word, _SPLIT_OF, 1, 0.75) for word in idx_name.words.split("-"))
    split = next((_SPLIT_OF[matches[0]] for matches in near if matches), None)
    claims_idx = idx_name.says_kind and re.search("idx|ubyte", name, re.IGNORECASE)
    if split is None or (dimensions is None and not claims_idx):
        return None
    by_content = "labels" if dimensions == 1 else "images"
    return split, idx_name.kind if idx_name.says_kind else by_content


def is_company(name: str) -> bool:
    """Return whether something lies beside data by its name: a checksum, a note, a picture."""
    base = name.removesuffix(compression_of(name))
    ending = base.rpartition(".")[2].lower() if "." in base else ""
    return ending in _OTHER_ENDINGS.split() or _OTHER_NAMES.fullmatch(base) is not None


def compression_of(name: str) -> str:
    """Return the ending that says how a file is compressed, as it stands; empty for a raw one."""
    return name[-3:] if name[-3:].lower() in COMPRESSIONS else ""
