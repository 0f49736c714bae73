"""The options of every command that takes a place: how a store is reached, whose lock is taken."""

import click

from storage.errors import UsageError

storage_option = click.option(
    "--storage-option",
    "storage_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="How to reach an s3:// store, such as endpoint_url=URL; may be given again.",
)
take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Take the lock that a dead writer has left in a store, and say whose it was.",
)


def store_options(storage_options: tuple[str, ...], *places: str | None) -> dict[str, str]:
    """The options by key, for `open_location` of each of the command's places.

    Raises `UsageError` for one that is not `KEY=VALUE`, or if none of the given places is in a
    store.
    """
    from storage.location import is_url_of_store
    from storage.s3_options import checked_options

    options = dict(map(_parted, storage_options))
    checked_options(options)
    if (
        options
        and places
        and not any(place is not None and is_url_of_store(place) for place in places)
    ):
        raise UsageError(
            "--storage-option is for places in a store, s3://BUCKET/PREFIX; there is none."
        )
    return options


def _parted(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not key or not equals:
        # The text is not shown: it may be a secret.
        raise UsageError("A --storage-option has no key or no '='; expected KEY=VALUE.")
    return key.strip(), value
