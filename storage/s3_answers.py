"""Interpretation of an S3 store's error responses: whether to retry, and what to report.

obstore reports a response as the text of an exception, with its status and body.
"""

import re

from obstore.exceptions import AlreadyExistsError, PreconditionError

TRANSIENT_STATUS = re.compile(r"408|425|429|5(?!01|05|07|11)\d\d")
TRANSIENT_CODE = re.compile(
    r"RequestTimeout\w*|InternalError|ServiceUnavailable|SlowDown|(Request)?Throttl\w+"
    r"|TooManyRequests\w*|RequestLimitExceeded|BandwidthLimitExceeded|PriorRequestNotComplete"
    r"|OperationAborted|ConditionalRequestConflict|TransactionInProgressException"
)
"""Codes that the AWS SDKs retry for any status, and S3's codes for transient conflicts."""
REGION_CODES = (
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
)
CREDENTIAL_CODE = re.compile(r"Expired\w*|RequestExpired|TokenRefreshRequired|Invalid\w*Token\w*")
"""Codes for bad credentials whose status is not 401 or 403."""

_STATUS = re.compile(r"status code: (\d{3})[\w -]*")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})")
_EXPECTED_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_HTML = re.compile(r"<!doctype html|<html", re.IGNORECASE)
_WRONG_REGION = "redirect without LOCATION"
_METADATA_SERVER = "169.254."
_LASTING = {
    "ETag Header missing": "no ETag",
    "DeleteObjects response": "no list of removed objects",
    "TooManyRedirects": "it redirects in a circle",
    "InvalidCertificate": "its TLS certificate is not trusted",
    "InvalidContentType": "it does not speak TLS; an endpoint that does not begins with http://",
    "BadScheme": "http:// is not allowed by allow_http",
}
_BROKEN_OFF = _LASTING | {
    "Header missing": "a header is missing",
    "invalid list response": "it does not list objects as S3 does",
    "Connection refused": "the connection is refused",
    "TimedOut": "no complete response in time",
    "timed out": "no complete response in time",
    "dns error": "the host name is unknown",
}


def may_pass(error: BaseException) -> bool:
    """Return whether an error is transient: the same request may succeed a moment later."""
    text = str(error)
    status = _STATUS.search(text)
    if TRANSIENT_CODE.fullmatch(code_of(error) or ""):
        return True
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return False
    if any(sign in text for sign in (_WRONG_REGION, _METADATA_SERVER, *_LASTING)):
        return False
    return status is None or bool(TRANSIENT_STATUS.fullmatch(status[1]))


def code_of(error: BaseException) -> str | None:
    """Return the S3 error code in a response's body; None if there is none."""
    code = _CODE.search(str(error))
    return code and code[1]


def refusal(error: BaseException, bucket: str, address: str) -> str:
    """Return the message for a permanent error: its cause, and what to do."""
    text, code = str(error), code_of(error) or ""
    status = _STATUS.search(text)
    number = status[1] if status else ""
    if code == "NoSuchBucket":
        return (
            f"there is no bucket '{bucket}' in the store. Create it, or check its name, the region "
            "and the endpoint."
        )
    if _METADATA_SERVER in text:
        return (
            "there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass "
            "--storage-option skip_signature=true for a public bucket."
        )
    if code in REGION_CODES or _WRONG_REGION in text:
        region = _EXPECTED_REGION.search(text)
        expected = f" to {region[1]}" if region else ""
        return (
            f"the bucket is in another region. Set AWS_REGION or --storage-option region{expected}."
        )
    denied = number in ("401", "403")
    if not code and (not denied or _HTML.search(text)):
        return not_s3(address, reason(error))
    if denied or CREDENTIAL_CODE.fullmatch(code):
        return (
            f"the store refuses these credentials ({reason(error)}). Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, their permissions, and this machine's "
            "clock."
        )
    return (
        f"the store refuses the request ({reason(error)}). Check its space and quota, the "
        "endpoint, the region and --storage-option."
    )


def not_s3(address: str, answer: str) -> str:
    """Return the message for a response that is not an S3 store's."""
    return (
        f"{address} does not respond like an S3 store ({answer}). Check the endpoint, and whether "
        "a proxy or a login page of the network responds in its place."
    )


def reason(error: BaseException) -> str:
    """Return the store's own message, or the state of the connection, in a few words."""
    text = str(error)
    status, message = _STATUS.search(text), _MESSAGE.search(text)
    if status:
        answer = status[0].removeprefix("status code: ").strip()
        page = " with a web page" if _HTML.search(text) else ""
        code = code_of(error)
        words = f": {message[1].strip().rstrip('.')}" if message else ""
        return answer + (f", {code}{words}" if code else page)
    for sign, meaning in _BROKEN_OFF.items():
        if sign in text:
            return meaning
    return "the connection was interrupted" if "HTTP error" in text else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an obstore error, without its source and Rust names."""
    return str(error).partition("\n")[0][:200].rstrip(".: ")
