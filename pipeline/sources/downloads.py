"""Download known sets: their published checksums, their mirrors, and the user's cache."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage.errors import UnreachableError

APPLICATION = "mnist-stream"
"""Name of the directory in the user's cache."""
CHUNK_BYTES = 64 * 1024
"""Bytes per read from a server."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalogue:
    """The files of a set and the mirrors that serve them."""

    name: str
    files: tuple[tuple[str, str], ...]
    """Name and published MD5 of each file. MD5 proves that a download is complete, not who made
    it."""
    mirrors: tuple[str, ...]
    """URL prefixes ending in a slash, in the order in which they are tried."""
    class_names: tuple[str, ...] | None = None
    """The names of labels 0, 1, ...; None for the labels themselves."""
    timeout_seconds: float = 20.0
    """Time limit for connecting, and for each read."""


def _catalogue(
    name: str, checksums: tuple[str, str, str, str], *mirrors: str, class_names: str | None = None
) -> Catalogue:
    names = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    files = tuple(zip(names, checksums, strict=True))
    return Catalogue(name, files, mirrors, tuple(class_names.split("; ")) if class_names else None)


CATALOGUES: Mapping[str, Catalogue] = {
    "mnist": _catalogue(
        "mnist",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": _catalogue(
        "fashion-mnist",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        class_names="T-shirt/top; Trouser; Pullover; Dress; Coat; Sandal; Shirt; Sneaker; Bag; "
        "Ankle boot",  # the README of the set
    ),
    "kmnist": _catalogue(
        "kmnist",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        # Only one host is known, with two protocols.
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        class_names="o; ki; su; tsu; na; ha; ma; ya; re; wo",  # kmnist_classmap.csv of the set
    ),
}
"""Sets by name, with the MD5 that their publishers and torchvision give."""


def download(catalogue: Catalogue, cache: Path | None = None) -> Path:
    """Return the directory in `cache` (by default the user's) with a complete, verified set.

    Files that are there and pass their checksum are not downloaded again; damaged ones are
    replaced. Each request is logged.

    Raises `UnreachableError` if all mirrors fail for a file, or if the cache cannot be written.
    """
    import pooch  # type: ignore[import-untyped]  # here, because it takes long to import

    pooch.get_logger().setLevel("WARNING")
    directory = (cache or Path(pooch.os_cache(APPLICATION))) / catalogue.name
    try:
        for name, md5 in catalogue.files:
            _fetch(catalogue, directory / name, md5)
    except OSError as error:
        raise UnreachableError(
            f"Cannot write the download to {directory} ({error}). Free some space or correct the "
            f"permissions, then try again. {_alternatives(catalogue)}"
        ) from error
    return directory


def _fetch(catalogue: Catalogue, path: Path, md5: str) -> None:
    """Download one file from the first mirror that serves it, unless it is there."""
    import pooch
    from requests import RequestException

    receive = pooch.HTTPDownloader(timeout=catalogue.timeout_seconds, chunk_size=CHUNK_BYTES)

    def announced(url: str, *arguments: Any) -> None:
        logger.info("downloading %s", url)
        receive(url, *arguments)

    answers = []
    for mirror in catalogue.mirrors:
        try:
            pooch.retrieve(
                mirror + path.name,
                known_hash=f"md5:{md5}",
                fname=path.name,
                path=path.parent,
                downloader=announced,
            )
        except RequestException as error:
            answers.append(f"{urlsplit(mirror).netloc} {_brief(error)}")
        except ValueError:  # pooch's error for a wrong checksum
            answers.append(f"{urlsplit(mirror).netloc} sent a file with the wrong checksum")
        else:
            return
    raise UnreachableError(
        f"{path.name} of {catalogue.name} could not be downloaded: {'; '.join(answers)}. "
        f"Try again later. {_alternatives(catalogue)}"
    )


def _brief(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answered {error.response.status_code}"
    known = (
        (requests.Timeout, "did not answer in time"),
        (requests.exceptions.ChunkedEncodingError, "sent an incomplete file"),
        (requests.ConnectionError, "could not be reached"),
    )
    return next((text for cls, text in known if isinstance(error, cls)), f"failed ({error})")


def _alternatives(catalogue: Catalogue) -> str:
    variable = ", or set MNIST_DIR to such a directory" if catalogue.name == "mnist" else ""
    return (
        "Without a network, use `pipeline ingest DIRECTORY` with your own IDX files"
        f"{variable}, or `pipeline ingest synthetic`."
    )
