"""What an S3 store's answer means: whether to try again, and what to tell people.

obstore hands an answer over as the text of an error, with its status and body.
"""

import re

from obstore.exceptions import AlreadyExistsError, PreconditionError

PASSING_STATUS = re.compile(r"408|425|429|5(?!01|05|07|11)\d\d")
"""The request may succeed a moment later; all of 5xx but what lasts."""
PASSING_CODES = frozenset(
    {
        *("RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable"),
        *("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "TooManyRequests"),
        *("RequestThrottled", "RequestThrottledException", "TooManyRequestsException"),
        *("RequestLimitExceeded", "BandwidthLimitExceeded", "PriorRequestNotComplete"),
        *("OperationAborted", "ConditionalRequestConflict", "TransactionInProgressException"),
    }
)
"""Those that the AWS SDKs try again whatever the status, and S3's for a conflict that passes."""
_EXPIRED = (
    "the session token has expired. Renew the credentials (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) and run the same command again."
)
CREDENTIALS = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "InvalidToken": "the store does not know the session token. Check AWS_SESSION_TOKEN; unset it "
    "where the keys have none.",
    "InvalidAccessKeyId": "the store does not know the access key. Check AWS_ACCESS_KEY_ID and the "
    "endpoint.",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key. Check "
    "AWS_SECRET_ACCESS_KEY.",
    "AccessDenied": "they lack the permission. Have it granted, or set others with "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
}
"""What is wrong with credentials, by the code of the answer."""
OTHER_CREDENTIALS = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they are allowed to do."
)
_REGION = "the bucket is in another region. Set AWS_REGION or --storage-option region{expected}."
_FULL = "the store is full or the quota used up. Free some space and run the same command again."
REFUSALS = {
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's. Set it and "
    "run the same command again.",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidBucketName": "the bucket's name is not valid. Check it.",
    "KeyTooLongError": "the key is too long for the store. Choose a shorter prefix.",
    "InvalidObjectState": "the object is archived. Restore it first.",
    "NotImplemented": "the store lacks this operation. Use one that has it.",
    "InsufficientStorage": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
}
"""Other refusals that last, by the code of the answer."""

_STATUS = re.compile(r"status code: (\d{3})[\w -]*")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_EXPECTED_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_HTML = re.compile(r"<!doctype html|<html", re.IGNORECASE)
_WRONG_REGION = "redirect without LOCATION"
_METADATA_SERVER = "169.254."
_NOT_AS_S3 = ("ETag Header missing", "DeleteObjects response", "TooManyRedirects")
"""Signs of an answer that no S3 store gives."""
_NOT_ALLOWED = ("401", "403")
_REDIRECTED_OR_ABSENT = ("301", "302", "303", "307", "308", "404", "405", "511")
"""Statuses that a store gives with a code; without one, something else answers."""
_LASTING = (
    ("InvalidCertificate", "its TLS certificate is not trusted"),
    ("InvalidContentType", "it does not speak TLS; an endpoint that does not begins with http://"),
    ("BadScheme", "http:// is not allowed by allow_http"),
)
_BROKEN_OFF = (
    *_LASTING,
    ("TooManyRedirects", "it redirects in a circle"),
    ("ETag Header missing", "no ETag"),
    ("Content-Length Header missing", "no Content-Length"),
    ("Invalid last modified", "no valid Last-Modified"),
    ("invalid list response", "its listing is not an S3 store's"),
    ("Connection refused", "the connection is refused"),
    ("TimedOut", "no whole answer in time"),
    ("timed out", "no whole answer in time"),
    ("dns error", "the host's name is not known"),
)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    text = str(error)
    code, status = code_of(error), _STATUS.search(text)
    if code in PASSING_CODES:
        return True
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return False
    lasting = (_WRONG_REGION, _METADATA_SERVER, *_NOT_AS_S3, *(sign for sign, _ in _LASTING))
    if any(sign in text for sign in lasting):
        return False
    return status is None or bool(PASSING_STATUS.fullmatch(status[1]))


def code_of(error: BaseException) -> str | None:
    """The code that S3 gives in the body of an answer; None where there is none."""
    found = _CODE.search(str(error))
    return found and found[1]


def refusal(error: BaseException, bucket: str, address: str) -> str:
    """Say what will not pass by itself, and what to do."""
    text, code = str(error), code_of(error)
    status = _STATUS.search(text)
    number = status[1] if status else ""
    if code == "NoSuchBucket":
        return (
            f"there is no bucket '{bucket}' at the store. Create it, or check its name, the "
            "region and the endpoint."
        )
    if _METADATA_SERVER in text:
        return (
            "there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass "
            "--storage-option skip_signature=true for a public bucket."
        )
    if _WRONG_REGION in text:
        return _REGION.format(expected="")
    if code is None and _is_of_another(text, number):
        return not_s3(address, reason(error))
    if code in CREDENTIALS or (number in _NOT_ALLOWED and code not in REFUSALS):
        why = CREDENTIALS.get(code or "", OTHER_CREDENTIALS)
        return f"the store refuses these credentials ({reason(error)}): {why}"
    why = REFUSALS.get(code or "", "check the endpoint, the region and --storage-option.")
    region = _EXPECTED_REGION.search(text)
    why = why.format(expected=f" to {region[1]}" if region else "")
    return f"the store refuses ({reason(error)}): {why}"


def _is_of_another(text: str, status: str) -> bool:
    """Whether an answer without a code comes from something else than a store."""
    if any(sign in text for sign in _NOT_AS_S3) or status in _REDIRECTED_OR_ABSENT:
        return True
    return bool(_HTML.search(text))


def not_s3(address: str, found: str) -> str:
    """Say that something else than an S3 store answers."""
    return (
        f"{address} does not answer as an S3 store does ({found}). Check the endpoint, and whether "
        "a login page or a proxy of the network answers in its place."
    )


def reason(error: BaseException) -> str:
    """The store's own word for it, or what became of the connection, in a few words."""
    text = str(error)
    status = _STATUS.search(text)
    if status:
        told = status[0].removeprefix("status code: ").strip()
        page = " with a web page" if _HTML.search(text) else ""
        code = code_of(error)
        return told + (f", {code}" if code else page)
    for sign, meaning in _BROKEN_OFF:
        if sign in text:
            return meaning
    return "the connection or the answer broke off" if "HTTP error" in text else first_line(error)


def first_line(error: BaseException) -> str:
    """What an error of obstore's says, without its source and what it names in Rust."""
    return str(error).partition("\n")[0][:200].rstrip(".: ")
