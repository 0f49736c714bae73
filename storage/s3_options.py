"""Options of an S3 store and `AWS_` variables, checked before obstore uses them.

obstore's HTTP client panics if it cannot parse a URL or a header.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from os import environ
from urllib.parse import urlsplit

from storage.errors import UsageError

ENDPOINT, REGION, RETRIES = "endpoint", "region", "retry_seconds"
FROM_ENVIRONMENT = {
    ENDPOINT: ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    REGION: ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
"""Read here, not by obstore, so that pickled locations carry them to other machines."""
ENDPOINT_OF_S3 = "aws_endpoint_url_s3"
"""obstore's key for the endpoint with the highest precedence."""
SHORT_NAMES = {"endpoint_url": ENDPOINT, "endpoint_url_s3": ENDPOINT}
OTHER_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_ENDPOINT_URL_STS",
)
"""Read by obstore itself."""
CLIENT_OPTIONS = ("timeout", "connect_timeout", "allow_http")
"""Options of obstore's HTTP client."""
URLS = (ENDPOINT, "container_credentials_full_uri", "metadata_endpoint", "endpoint_url_sts")
REGIONS = (REGION, "default_region")

_URL = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?[a-z0-9._~!$&'()*+,;=:@%/-]*", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
"""The last part of a host name that counts as an IPv4 address."""
_REGION = re.compile(r"[A-Za-z0-9-]+")
_SECONDS = re.compile(r"\d{1,6}(\.\d*)?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def check_bucket(bucket: str, url: str) -> None:
    """Raise `UsageError` for an invalid bucket name."""
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{url!r} names the bucket {bucket!r}; expected letters, digits, dots, hyphens and "
            "underscores."
        )


def store_settings(options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the options by short name, with the endpoint and region of the environment.

    Raises `UsageError` that names the option or variable with an unusable value.
    """
    settings = checked_options(options)
    for name, variables in FROM_ENVIRONMENT.items():
        for variable in variables:
            value = environ.get(variable)
            if value is not None and (value or name != REGION):
                settings.setdefault(name, _checked(name, value, variable))
    for variable in OTHER_VARIABLES:
        if variable in environ:
            _checked(_short(variable), environ[variable], variable)
    if ENDPOINT in settings:
        settings[ENDPOINT_OF_S3] = settings[ENDPOINT]  # overrides the environment's
        if settings[ENDPOINT].startswith("http://"):
            settings.setdefault("allow_http", "true")
    return tuple(sorted(settings.items()))


def checked_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return options by short name; raise `UsageError` like `store_settings`."""
    return {
        _short(name): _checked(_short(name), value, f"--storage-option {name}")
        for name, value in options.items()
    }


def _short(name: str) -> str:
    name = name.lower().removeprefix("aws_")
    return SHORT_NAMES.get(name, name)


def _checked(name: str, value: str, source: str) -> str:
    """Return a valid value, a URL with a lowercase scheme."""
    if name in URLS:
        return _checked_url(value, source)
    if name in REGIONS and not _REGION.fullmatch(value):
        raise UsageError(f"{source} is {value!r}; expected the name of a region like eu-central-1.")
    if name == RETRIES and not _SECONDS.fullmatch(value):
        raise UsageError(f"{source} is {value!r}; expected a number of seconds.")
    if not value.isprintable() or value != value.strip():
        # The value may be a secret, so it is not shown.
        raise UsageError(
            f"{source} contains a control character, or leading or trailing whitespace. Remove it."
        )
    return value


def _checked_url(url: str, source: str) -> str:
    if not _URL.fullmatch(url) or not _has_host(url):
        shown = "" if "@" in url else f" {url!r}"  # it may contain a password
        raise UsageError(
            f"{source}{shown} is not a valid endpoint. Expected a URL such as "
            "https://s3.example.com or http://localhost:9000, without a user name, '?' or '#'."
        )
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def _has_host(url: str) -> bool:
    """Return whether a URL has a valid port, and a name, an IPv4 or an IPv6 address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.port == 0 or "@" in parts.netloc:
            return False
        if "[" in parts.netloc or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            ip_address(host)
        host.encode().decode("idna")  # raises for an invalid "xn--" name
    except ValueError:
        return False
    return True
