"""What an exported file contains: the description of its model, and the parameters of each member.

Two digests protect it. The description's `file_digest` is that of the file with zeros in place of
those digits. The members' digests are those of their parameters.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.nn.architecture import Layer, parse_network
from jobs.nn.parameters import Floats
from jobs.training.description import FORMAT, FORMAT_VERSION, describe, describe_member
from jobs.training.model import Model
from jobs.training.trainer import parameters_digest
from storage.checkpoints import MANIFEST, STATE
from storage.documents import check_fields, check_format
from storage.errors import BadDataError
from storage.preparation import Preparation, ValueRange
from storage.scores import average_digest

FILE_DIGEST = "file_digest"
"""The field of a description with the digest of the file."""
ZEROS = "0" * 64
"""What is in its place when the digest is computed."""
DTYPES = ("float32", "float64")
"""The types of parameters."""
FIELDS = {
    "model_digest": str,
    "image_shape": list,
    "element_type": str,
    "transposed": bool,
    "class_names": list,
    "average_shifts": int,
    "members": list,
}
"""The fields of a description that are read back, with their types."""
MEMBER_FIELDS = {"digest": str, "network": str, "dtype": str}
"""Those of a member."""


@dataclass(frozen=True)
class Content:
    """A model that was read from a file."""

    description: dict[str, Any]
    parameters: Sequence[Floats]
    """The flat parameters of each member, `(parameters,)`."""


def description_of(model: Model) -> dict[str, Any]:
    """Return the description of a loaded model, with zeros for the file's digest."""
    members = [
        describe_member(member.network, member.digest, member.run.dataset_digest)
        for member in model.members
    ]
    # First, so that these zeros are the first ones in the file.
    return {FILE_DIGEST: ZEROS} | describe(model, members, model.average_shifts)


def with_file_digest(data: bytes) -> bytes:
    """Return a file's bytes with their digest in its place."""
    return data.replace(ZEROS.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def check_description(
    description: dict[str, Any], data: bytes, place: str, *, is_checkpoint: bool = False
) -> list[tuple[Layer, ...]]:
    """Return the layers of each member; raise `BadDataError` for a damaged description or file.

    The file of a checkpoint has its digest in the manifest, not in its description.
    """
    check_format(description, FORMAT, (FORMAT_VERSION,), place)
    check_fields(description, FIELDS, place)
    if not is_checkpoint:
        check_file_digest(description.get(FILE_DIGEST), data, place)
    sizes, names = description["image_shape"], description["class_names"]
    if not all(type(size) is int for size in sizes) or not all(isinstance(n, str) for n in names):
        raise BadDataError(f"{place} has the image shape {sizes!r} and the classes {names!r}.")
    preparation_of(description, place)
    return [_layers_of(member, f"A member of {place}") for member in description["members"]]


def check_file_digest(recorded: object, data: bytes, place: str) -> None:
    """Raise `BadDataError` if a file does not have the digest that it records."""
    if not isinstance(recorded, str):
        raise BadDataError(
            f"{place} cannot be checked, because it does not record its digest as exports do. "
            f"For a checkpoint's {STATE}, keep the {MANIFEST} beside it, which has the digest."
        )
    digest = hashlib.sha256(
        data.replace(recorded.encode(errors="replace"), ZEROS.encode(), 1)
    ).hexdigest()
    if digest != recorded:
        raise BadDataError(
            f"{place} was changed after it was exported: it records the digest {recorded!r}, and "
            f"its content has {digest}. Export it again."
        )


def preparation_of(description: dict[str, Any], place: str) -> Preparation:
    """Return the preparation that a file at `place` describes."""
    scaling = description.get("scaling")
    try:
        values = None if scaling is None else ValueRange(*map(float, scaling))
    except (TypeError, ValueError) as error:
        raise BadDataError(f"{place} has the scaling {scaling!r}: {error}.") from error
    return Preparation(values, description["transposed"])


def _layers_of(member: dict[str, Any], place: str) -> tuple[Layer, ...]:
    check_fields(member, MEMBER_FIELDS, place)
    if member["dtype"] not in DTYPES:
        raise BadDataError(
            f"{place} has dtype {member['dtype']!r}; expected {' or '.join(DTYPES)}."
        )
    try:
        return parse_network(member["network"])
    except ValueError as error:
        raise BadDataError(f"{place}: {error}") from error


def check_parameters(
    description: dict[str, Any], parameters: Sequence[Floats], place: str
) -> Content:
    """Return the content; raise `BadDataError` if parameters do not have their digest."""
    digests = []
    for number, (member, values) in enumerate(zip(description["members"], parameters, strict=True)):
        digest = parameters_digest(parse_network(member["network"]), values)
        if digest != member["digest"]:
            raise BadDataError(
                f"The parameters of member {number} of {place} have digest {digest}; it records "
                f"{member['digest']}: it is damaged. Export it again."
            )
        digests.append(digest)
    if average_digest(digests, description["average_shifts"]) != description["model_digest"]:
        raise BadDataError(
            f"The members of {place} are not those of model {description['model_digest']}. Export "
            "it again."
        )
    return Content(description, parameters)
