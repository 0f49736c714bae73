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

_SPLIT_WORDS = {
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
    r"(?:(?P<prefix>.+)[-_.])?"
    r"(?:(?P<train>train)[^-_.]*|(?P<test>test|t10k)[^-_.]*|validation|valid|val|dev)"
    r"[-_.](?P<kind>image|label)s?"
    rf"[-_.]idx\d*(?:[-_.](?:{_TYPES}))?",
    re.IGNORECASE | re.DOTALL,
)
_KIND = re.compile(r"(image|label)s?(?!l?ed)", re.IGNORECASE)
"""A name's words for what the file holds; what is labelled, or is not, holds images."""
_FORMAT = re.compile(
    rf"idx(?P<dimensions>\d*)(?:[-_.](?:{_TYPES})\b)?|\b(?:{_TYPES})\b", re.IGNORECASE
)
_SEPARATORS = re.compile(r"[-_.\s]+")
_ADDED = re.compile(
    r"\A(?P<before>copy of )?(?P<name>.*?)"
    r"(?:[ _-]*\(\d+\)|[ _-]+copy(?:[ _-]*\(?\d+\)?)?|\?[^/]*)?"
    r"(?P<packed>\.gz|\.xz)?"
    r"(?:\.\d+|[ _-]*\(\d+\)|[ _-]+copy(?:[ _-]*\(?\d+\)?)?|\?[^/]*)?\Z",
    re.IGNORECASE | re.DOTALL,
)
"""What wget, browsers and file managers add to the name of a second copy, or keep of a URL."""

_SPLIT_WORD = re.compile(
    r"(?<![a-z])(training|train|testing|test|t10k|validation|valid|val|dev)"
    r"(?=[^a-z]|image|img|label|lbl|idx|\Z)",
    re.IGNORECASE,
)
_KIND_WORD = re.compile(
    r"(?P<images>images?|img|(?<![a-z0-9])x(?![a-z0-9]))|"
    r"(?P<labels>labels?|lbl|lable|target|(?<![a-z0-9])y(?![a-z0-9]))",
    re.IGNORECASE,
)
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
    """What stands before the split in an expected name, such as `emnist-letters`; often empty."""
    split: str | None
    """One of `SPLITS`; None where the name is not an expected one."""
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

    @property
    def is_expected(self) -> bool:
        """Whether the name alone tells the split, the kind and that it is IDX."""
        return self.split is not None


def read_name(name: str) -> IdxName:
    """Return what a name says; a file that does not say that it holds labels holds images."""
    base = _without_compression(name)
    kinds = _KIND.findall(base)
    kind = "labels" if kinds and kinds[-1].lower() == "label" else "images"
    digits = [match["dimensions"] for match in _FORMAT.finditer(base) if match["dimensions"]]
    dimensions = int(digits[-1][:3]) if digits else 0
    tokens = _SEPARATORS.split(_KIND.sub("-", _FORMAT.sub("-", base)).lower())
    words = [token for token in tokens if token]
    stem = "-".join(_SPLIT_WORDS.get(word, word) for word in words)
    prefix, split = "", None
    expected = None if base.startswith(".") else _EXPECTED.fullmatch(base)
    if expected is not None:
        prefix = expected["prefix"] or ""
        split = "train" if expected["train"] else "test" if expected["test"] else "validation"
    return IdxName(
        name, base, prefix, split, kind, bool(kinds), dimensions, "-".join(words), stem
    )  # fmt: skip


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
    return min(rivals, key=lambda rival: COMPRESSIONS.index(_compression(rival.name)))


def by_stem(names: Iterable[str]) -> dict[str, dict[str, list[IdxName]]]:
    """Return the names grouped by stem, then by kind."""
    groups: dict[str, dict[str, list[IdxName]]] = defaultdict(lambda: defaultdict(list))
    for idx_name in map(read_name, names):
        groups[idx_name.stem][idx_name.kind].append(idx_name)
    return groups


def tidied(name: str) -> str:
    """Return a name without what wget, browsers and file managers add to that of a second copy."""
    match = _ADDED.fullmatch(name)
    return name if match is None else match["name"] + (match["packed"] or "")


def propose_name(name: str, header: tuple[int, str] | None, compression: str) -> str | None:
    """Return the expected name that `name` comes near; None where it tells no split and kind.

    `header` is the file's number of dimensions and element type, where its content is IDX: then
    the name need not say so, nor which kind it is. `compression` is one of `COMPRESSIONS`.
    """
    base = _without_compression(tidied(name))
    kind_word = _KIND_WORD.search(base)
    split = _SPLIT_WORD.search(base) or _misspelt_split(base, kind_word)
    claims = re.search(r"idx|ubyte", base, re.IGNORECASE)
    if split is None or (header is None and not (claims and kind_word)):
        return None
    kind = kind_word.lastgroup if kind_word else None
    if kind is None and header is not None:
        kind = "labels" if header[0] == 1 else "images"
    known = {"images": (3, "ubyte"), "labels": (1, "ubyte")}[str(kind)]
    dimensions, element_type = header or known
    first = min(match.start() for match in (split, kind_word) if match)
    prefix = base[:first].rstrip("-_. ")
    word = _split_word(split[1])
    return (
        f"{prefix}{'-' if prefix else ''}{word}-{kind}-idx{dimensions}-{element_type}{compression}"
    )


def _misspelt_split(base: str, kind_word: re.Match[str] | None) -> re.Match[str] | None:
    """Return the word before that for the kind, where it is nearly one for a split."""
    before = "" if kind_word is None else base[: kind_word.start()]
    word = re.search(r"([a-z0-9]+)[-_.\s]*\Z", before, re.IGNORECASE)
    return word if word and _split_word(word[1]) else None


def _split_word(word: str) -> str:
    """Return the word for a split that `word` is or nearly is; empty where there is none."""
    return next(iter(get_close_matches(word.lower(), _SPLIT_WORDS, 1, 0.75)), "")


def is_company(name: str) -> bool:
    """Whether a name is that of something that lies beside data: a checksum, a note, a picture."""
    base = _without_compression(name)
    ending = base.rpartition(".")[2].lower() if "." in base else ""
    return ending in _OTHER_ENDINGS.split() or _OTHER_NAMES.fullmatch(base) is not None


def _compression(name: str) -> str:
    ending = name[-3:].lower()
    return ending if ending in COMPRESSIONS else ""


def _without_compression(name: str) -> str:
    return name[: -len(ending)] if (ending := _compression(name)) else name
