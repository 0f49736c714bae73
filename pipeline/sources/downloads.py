"""Sets that can be downloaded: their published checksums, their mirrors, and the user's cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from storage.errors import UnreachableError

APPLICATION = "mnist-stream"
"""The name of our directory in the user's cache."""


@dataclass(frozen=True)
class Catalogue:
    """A set's files and the mirrors that serve them."""

    name: str
    files: tuple[tuple[str, str], ...]
    """File name and published MD5 of each. MD5 is what their publishers give; it proves that a
    download is whole, not who made it."""
    mirrors: tuple[str, ...]
    """URL prefixes ending in a slash, the first to ask first."""
    timeout_seconds: float = 20.0
    """The longest wait for a connection, and for each next piece of an answer."""


def _catalogue(name: str, checksums: tuple[str, str, str, str], *mirrors: str) -> Catalogue:
    names = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    return Catalogue(name, tuple(zip(names, checksums, strict=True)), mirrors)


CATALOGUES: Mapping[str, Catalogue] = MappingProxyType(
    {
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
        ),
        "kmnist": _catalogue(
            "kmnist",
            (
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
            # One host is known to serve it, over two protocols.
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        ),
    }
)
"""The sets that can be had by name; their MD5 as their publishers and torchvision give them."""


def download(
    catalogue: Catalogue,
    *,
    cache: Path | None = None,
    offline: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Path:
    """The directory in `cache` that holds the whole set, each file checked against its checksum.

    What lies there whole is not asked for again; what is damaged is replaced. A file has its name
    only once it is whole. `cache` is by default the user's; `announce` is told of each request.

    Raises `UnreachableError` where a file is missing and `offline`, where every mirror fails, or
    the cache cannot be written.
    """
    import pooch  # type: ignore[import-untyped]  # here, because it takes long to import

    directory = (cache or Path(pooch.os_cache(APPLICATION))) / catalogue.name
    mirrors = catalogue.mirrors
    try:
        for name, md5 in catalogue.files:
            if _is_whole(directory / name, md5):
                continue
            if offline:
                raise _offline_error(catalogue, directory / name)
            mirrors = _fetch(catalogue, mirrors, directory / name, md5, announce)
    except OSError as error:
        raise UnreachableError(
            f"{directory}: the download cannot be kept there ({error}). Make room or correct its "
            f"permissions, then try again. {_alternatives(catalogue)}"
        ) from error
    return directory


def _is_whole(path: Path, md5: str) -> bool:
    import pooch

    return path.is_file() and bool(pooch.file_hash(str(path), alg="md5") == md5)


def _fetch(
    catalogue: Catalogue,
    mirrors: tuple[str, ...],
    path: Path,
    md5: str,
    announce: Callable[[str], None],
) -> tuple[str, ...]:
    """Download one file; returns the mirrors with the one that served it first."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")  # what is announced is said once, by the caller
    downloader = pooch.HTTPDownloader(timeout=catalogue.timeout_seconds, chunk_size=64 * 1024)
    answers = []
    for index, mirror in enumerate(mirrors):
        url = mirror + path.name
        announce(f"downloading {url}")
        try:
            pooch.retrieve(
                url,
                known_hash=f"md5:{md5}",
                fname=path.name,
                path=path.parent,
                downloader=downloader,
            )
        except RequestException as error:
            answers.append(f"{urlsplit(url).netloc} {_brief(error)}")
        except ValueError:  # pooch's word for another checksum
            answers.append(f"{urlsplit(url).netloc} sent a file with another checksum")
        else:
            return mirrors[index:] + mirrors[:index]
    raise UnreachableError(
        f"{path.name} of {catalogue.name} could not be downloaded: {'; '.join(answers)}. "
        f"Try again later. {_alternatives(catalogue)}"
    )


def _brief(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answered {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "cut the file off"
    if isinstance(error, requests.ConnectionError):
        return "could not be reached"
    return f"failed ({type(error).__name__})"


def _offline_error(catalogue: Catalogue, path: Path) -> UnreachableError:
    return UnreachableError(
        f"{path}: this file of {catalogue.name} is not in the cache, or damaged there, and "
        f"downloads are off. {_alternatives(catalogue)}"
    )


def _alternatives(catalogue: Catalogue) -> str:
    variable = ", or set MNIST_DIR to such a directory" if catalogue.name == "mnist" else ""
    return (
        "Without a network, use `pipeline ingest DIRECTORY` with IDX files that you have"
        f"{variable}, or `pipeline ingest synthetic`."
    )
