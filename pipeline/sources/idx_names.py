"""Parse names of IDX files: the split, images or labels, and which labels belong to which images.

Names of MNIST and similar sets are recognised: `train-images-idx3-ubyte`, `t10k-labels.idx1-ubyte`,
`emnist-letters-test-images-idx3-ubyte.gz`, `qmnist-test-labels-idx2-int`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pipeline.sources.splits import SPLIT_OF

COMPRESSIONS = ("", ".gz", ".xz")
"""Suffixes of raw and compressed files, in order of preference."""
UNFINISHED = re.compile(
    r".*(\.part|\.partial|\.tmp|\.filepart|\.crdownload|\.download|\.swp|~)",
    re.IGNORECASE | re.DOTALL,
)
"""Names that copying and downloading programs give to unfinished files."""

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
_CONTENT = re.compile(r"(image|label)s?(?!l?ed)", re.IGNORECASE)
"""Words of a name for the content; `labelled` and `labeled` say nothing about it."""
_FORMAT = re.compile(
    rf"idx(?P<dimensions>\d*)(?:[-_.](?:{_TYPES})\b)?|\b(?:{_TYPES})\b", re.IGNORECASE
)
_COPY = r"[ _-]*\(\d+\)|[ _-]+copy(?:[ _-]*\(?\d+\)?)?|\?[^/]*"
_ADDED = re.compile(
    rf"(?:copy of )?(?P<name>.*?)(?:{_COPY})?(?P<compression>\.gz|\.xz)?(?:\.\d+|{_COPY})?",
    re.IGNORECASE | re.DOTALL,
)
"""Additions of wget, browsers and file managers to a second copy's name, and parts of URLs."""

_OTHER_ENDINGS = (
    "arw asc avi avif b2 bmp cff cfg cksum conf cr2 cr3 crc crc32 css csv ctl db dng doc docx "
    "done eml flac flag gif heic heif htm html ini ipynb jp2 jpeg jpg js json jsonl jxl lnk "
    "lock log m4v md md5 md5sum meta metadata mkv mov mp3 mp4 nef ods odt ogg ok org par2 "
    "parquet pdf pgm png ppm ppt pptx ps py raf ready rst rtf sfv sh sha sha1 sha1sum sha224 "
    "sha256 sha256sum sha384 sha512 sha512sum sig svg tex tif tiff toml torrent tsv txt url "
    "wav webloc webm webp xls xlsx xml yaml yml"
)
"""Suffixes of files that accompany data: checksums, documents, tables, pictures, markers."""
_OTHER_NAMES = re.compile(
    r"_.*|#.*#|(?:md5|sha\d*|b2|b3|blake\d?|ck|check)sums?(?:\.gpg)?|readme.*|licen[cs]e.*|"
    r"copying|copyright|notice|authors|contributing|citation|install|version|changelog.*|"
    r"manifest.*|success|done|ready|complete|"
    r"(?:eh)?thumbs\.db.*|desktop\.ini|icon\r|makefile|dockerfile",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class IdxName:
    """A file's name and its parts."""

    name: str
    base: str
    """The name without .gz or .xz."""
    prefix: str
    """The part before the split, such as `emnist-letters`; often empty."""
    split: str | None
    """One of `SPLITS`; None unless the whole name follows the convention of IDX files."""
    content: str
    """`images` or `labels`."""
    says_content: bool
    """Whether the name says which; otherwise images are assumed."""
    dimensions: int
    """The digit of `idx3`; 0 without one."""
    words: str
    """The words of the name except content, format and compression."""
    stem: str
    """`words` with one word for each split; images and their labels have the same."""


def read_name(name: str) -> IdxName:
    """Parse a file's name."""
    base = name.removesuffix(compression_of(name))
    contents = _CONTENT.findall(base)
    content = "labels" if contents and contents[-1].lower() == "label" else "images"
    digits = [match["dimensions"] for match in _FORMAT.finditer(base) if match["dimensions"]]
    rest = _CONTENT.sub("-", _FORMAT.sub("-", base)).lower()
    words = [word for word in re.split(r"[-_.\s]+", rest) if word]
    prefix, split = "", None
    if expected := _EXPECTED.fullmatch(base):
        prefix = expected["prefix"] or ""
        split = SPLIT_OF[(expected["split"] or expected["validation"]).lower()]
    return IdxName(
        name=name,
        base=base,
        prefix=prefix,
        split=split,
        content=content,
        says_content=bool(contents),
        dimensions=int(digits[-1][:3]) if digits else 0,
        words="-".join(words),
        stem="-".join(SPLIT_OF.get(word, word) for word in words),
    )


def choose_one(rivals: Sequence[IdxName]) -> IdxName | None:
    """Return the file to read among several with one stem and content; None if it is ambiguous.

    A raw file is preferred to compressed ones, and one label per row (idx1) to a table (QMNIST's
    idx2-int).
    """
    if rivals[0].content == "labels":
        fewest = min(rival.dimensions for rival in rivals)
        rivals = [rival for rival in rivals if rival.dimensions == fewest]
    if len({rival.base for rival in rivals}) > 1:
        return None
    return min(rivals, key=lambda rival: COMPRESSIONS.index(compression_of(rival.name).lower()))


def by_stem(names: Iterable[IdxName]) -> dict[str, dict[str, list[IdxName]]]:
    """Group names by stem, then by content."""
    groups: dict[str, dict[str, list[IdxName]]] = defaultdict(lambda: defaultdict(list))
    for idx_name in names:
        groups[idx_name.stem][idx_name.content].append(idx_name)
    return groups


def without_copy_marks(name: str) -> str:
    """Return a name without the additions that mark a second copy, such as ` (1)`."""
    match = _ADDED.fullmatch(name)
    return name if match is None else match["name"] + (match["compression"] or "")


def nearest_role(name: str, dimensions: int | None) -> tuple[str, str] | None:
    """Return the split and the content that a name almost says; None for unrelated names.

    `dimensions` is given for a file in IDX format, whose name need not mention the format.
    """
    idx_name = read_name(without_copy_marks(name))
    near = (get_close_matches(word, SPLIT_OF, 1, 0.75) for word in idx_name.words.split("-"))
    split = next((SPLIT_OF[matches[0]] for matches in near if matches), None)
    claims_idx = idx_name.says_content and re.search("idx|ubyte", name, re.IGNORECASE)
    if split is None or (dimensions is None and not claims_idx):
        return None
    by_shape = "labels" if dimensions == 1 else "images"
    return split, idx_name.content if idx_name.says_content else by_shape


def accompanies_data(name: str) -> bool:
    """Return whether a file is a checksum, a note, a picture or the like, by its name."""
    base = name.removesuffix(compression_of(name))
    ending = base.rpartition(".")[2].lower() if "." in base else ""
    return ending in _OTHER_ENDINGS.split() or _OTHER_NAMES.fullmatch(base) is not None


def compression_of(name: str) -> str:
    """Return a name's suffix `.gz` or `.xz`, in its own case; empty for a raw file."""
    return name[-3:] if name[-3:].lower() in COMPRESSIONS else ""
