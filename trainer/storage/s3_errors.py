"""What failed requests to S3 mean: whether a retry may help, and the line that the user reads."""

import re
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PaginationError,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from trainer import config
from trainer.formatting import masked, one_line
from trainer.storage.store import Archived, NotFound, StoreError

NETWORK = (HTTPClientError, BotoConnectionError, IncompleteReadError)
NOT_S3 = "NotS3"
"""Our own code for a successful response whose body is not that of an S3 server, such as a proxy's HTML page."""
TRANSIENT = frozenset({429, 500, 502, 503, 504, 509})
"""HTTP statuses after which a retry may succeed."""
TRANSIENT_CODES = frozenset({"RequestTimeout", "BadDigest", "OperationAborted", "ConditionalRequestConflict", NOT_S3}) | {
    *("SlowDown", "Throttling", "ThrottlingException", "KMS.ThrottlingException", "RequestLimitExceeded", "InternalError")
}
ANSWERS = {
    "NoSuchBucket": ("no such bucket", "create it or correct the bucket name"),
    "InvalidBucketName": ("not a bucket name for this server", "correct the bucket name"),
    "InvalidAccessKeyId": ("the server does not know this access key", "check AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": ("the secret key is wrong", "check AWS_SECRET_ACCESS_KEY"),
    "AccessDenied": (
        "these credentials lack the permission",
        "grant it (k8s/s3-policy.json lists all), use other credentials, or list a public bucket in s3.anonymous",
    ),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), ("the credentials have expired", "renew them")
    ),
    "InvalidToken": ("the session token is wrong", "check AWS_SESSION_TOKEN, and unset it for permanent keys"),
    "RequestTimeTooSkewed": ("this machine's clock differs too much from the server's", "set the clock"),
    "NotImplemented": (
        "the server does not support this operation",
        "use a server with conditional writes (If-None-Match) and multipart uploads",
    ),
    "KMS.DisabledException": ("the encryption key is disabled", "enable it in KMS"),
    "KMS.NotFoundException": ("the encryption key does not exist", "correct s3.kms_key or the bucket's default encryption"),
    "QuotaExceeded": ("the bucket is full", "delete objects or raise its quota"),
    "XMinioStorageFull": ("the server's disks are full", "delete objects or add disks"),
    "InvalidObjectState": ("is archived", "restore it"),
}
"""S3 error code -> problem and fix."""
WRONG_REGION = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
"""Codes of a request that went to another region than the bucket's."""
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects cannot be read before they are restored."""
ROOTS = (
    b"ListBucketResult",
    b"ListAllMyBucketsResult",
    b"InitiateMultipartUploadResult",
    b"CompleteMultipartUploadResult",
    b"ListMultipartUploadsResult",
    b"ListPartsResult",
    b"DeleteResult",
    b"LocationConstraint",
    b"Error",
)
"""Root elements of the XML that S3 servers answer with."""
LISTINGS = frozenset({"ListObjectsV2", "ListMultipartUploads"})
"""Operations whose answer is never empty."""
_CERTIFICATE, _NOT_TLS, _BROKEN = "CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", ("EOF", "timed out", "reset")
"""OpenSSL's words: a certificate is not trusted, the other side does not speak TLS, and the connection was lost."""


def is_transient(error: Exception | None) -> bool:
    """Whether a failed request may succeed when it is sent again."""
    if isinstance(error, ClientError):
        return may_pass(status(error), error.response.get("Error", {}).get("Code"), error.operation_name)
    return isinstance(error, NETWORK) and not _is_refused(error)


def may_pass(number: int, code: str | None, operation: str) -> bool:
    """Whether another attempt may succeed after this response. `number`: its HTTP status."""
    # Every error response except those to HEAD has a body. Without one, the response was cut off.
    cut_off = code == str(number) and not operation.startswith("Head")
    return number in TRANSIENT or code in TRANSIENT_CODES or cut_off


def retry_after(answer: Mapping[str, Any]) -> float:
    """The seconds that a response asks a client to wait before the next attempt (RFC 9110, 10.2.3); 0 if it does not say so, or
    gives a date."""
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return float(said) if re.fullmatch(r"\d{1,9}", said) else 0.0


def check_answer(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """botocore's hook before it parses a response. Turns what would read as an empty listing into an error: no body, or a page
    of a proxy or a portal. botocore does so with XML that is none."""
    body = response_dict["body"]
    if response_dict["status_code"] >= 300 or not isinstance(body, bytes):
        return
    if not body.strip() and operation_model.name not in LISTINGS:
        return
    root = re.search(rb"<\s*(?:[\w.-]+:)?([A-Za-z][\w.-]*)", re.sub(rb"<!--.*?-->", b"", body[:10_000], flags=re.DOTALL))
    if not root or root[1] not in ROOTS:
        text = "a page that is not S3's XML"
        response_dict["body"] = f"<Error><Code>{NOT_S3}</Code><Message>{text}</Message></Error>".encode()
        response_dict["status_code"] = 502


def whole(page: dict[str, Any]) -> dict[str, Any]:
    """The page of a listing. Raises ValueError if there are more pages but no token to ask for them: botocore would stop."""
    if page.get("IsTruncated") and not page.get("NextContinuationToken"):
        raise ValueError("a truncated listing without NextContinuationToken")
    return page


def explain(error: Exception, where: str, s3: config.S3, endpoint_url: str) -> StoreError | None:
    """The error of a failed operation on the object `where`; None if it does not come from S3 or the way to it."""
    if isinstance(error, ClientError):
        return _explain_answer(error, where, s3, endpoint_url)
    if isinstance(error, NoCredentialsError):
        return StoreError(
            f"{where}: no AWS credentials found. Fix: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, configure another source "
            "that the AWS SDK reads, or list a public bucket in s3.anonymous."
        )
    endpoint, tried = _endpoint(endpoint_url), _attempts(s3.max_attempts)
    if isinstance(error, ReadTimeoutError):
        return StoreError(
            f"{where}: {endpoint} sent no data for {s3.read_timeout:g} s ({tried}). "
            "Fix: check whether the server is overloaded, or raise s3.read_timeout or s3.max_attempts.",
            transient=True,
        )
    if isinstance(error, SSLError) and _is_refused(error):
        problem, fix = f"cannot be reached by TLS ({one_line(error)})", "correct AWS_CA_BUNDLE or the server's TLS"
        if _NOT_TLS in str(error):
            problem, fix = "does not speak TLS", "write its address with http://"
        elif _CERTIFICATE in str(error):
            why = re.search(r"certificate verify failed: ([^(\n]*)", str(error))
            problem = f"has a certificate that is not trusted ({why[1].strip() if why else one_line(error)})"
            fix = "set AWS_CA_BUNDLE to a PEM file with the certificate of its authority, or correct the server's certificate"
        return StoreError(f"{where}: {endpoint} {problem}. Fix: {fix}.")
    if isinstance(error, BotoConnectionError):
        return StoreError(
            f"{where}: {endpoint} cannot be reached ({tried}; {one_line(error)}). Fix: start the server or correct s3.endpoint_url "
            f"(or AWS_ENDPOINT_URL){_around_proxy(endpoint_url)}; servers other than AWS often need s3.path_style = true.",
            transient=True,
        )
    if isinstance(error, NETWORK):
        return StoreError(
            f"{where}: {endpoint} cut its response short ({tried}; {one_line(error)}). "
            "Fix: check the server's log and the network, or raise s3.max_attempts.",
            transient=True,
        )
    if isinstance(error, ResponseParserError | PaginationError | ValueError | KeyError):  # from botocore's parsers, and `whole`
        return StoreError(f"{where}: {endpoint} sent a malformed answer ({one_line(error)}). {_no_s3(endpoint_url)}")
    if isinstance(error, RecursionError):  # botocore follows redirects to other regions without a limit
        return StoreError(f"{where}: {endpoint} redirects every request. {_no_s3(endpoint_url)}")
    if isinstance(error, BotoCoreError):
        return StoreError(f"{where}: {one_line(error)}. Fix: correct what this names.")
    return None


def _explain_answer(error: ClientError, where: str, s3: config.S3, endpoint_url: str) -> StoreError:
    number, operation, told = status(error), error.operation_name, error.response.get("Error", {})
    code = str(told.get("Code") or number)
    bare = code == str(number)  # the response had no readable body
    server, tried = _endpoint(endpoint_url), _attempts(retries(error) + 1)
    answered = f"{where}: {server} answered {operation} with {number if bare else f'{number} {code}'}"
    said = " ".join(str(told.get("Message") or "").split())[:300]
    region = told.get("Region") or error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if code == "NoSuchKey":
        return NotFound(f"{where}: no such object")
    if code == "InvalidObjectState":
        return Archived(f"{where}: the object is archived ({told.get('StorageClass') or code}). Fix: restore it.")
    if code in WRONG_REGION or (bare and 300 < number < 400 and region):
        fix = f"set s3.region = {region}" if region else "set s3.region to that of the bucket"
        return StoreError(f"{where}: the bucket is in another region ({code}). Fix: {fix}.")
    if code in ANSWERS:
        problem, fix = ANSWERS[code]
        if "kms:" in said:
            fix = f"grant the permission that the server names ({said})"
        return StoreError(f"{where}: {problem} ({code} for {operation}). Fix: {fix}.")
    if code == NOT_S3:
        return StoreError(f"{where}: {server} answered {operation} with {said} ({tried}). {_no_s3(endpoint_url)}")
    if number in TRANSIENT or code in TRANSIENT_CODES:
        return StoreError(
            f"{answered} ({tried}). Fix: wait until the server has recovered, or raise s3.max_attempts (now {s3.max_attempts}).",
            transient=True,
        )
    if bare and not operation.startswith("Head"):
        return StoreError(f"{answered} and no S3 error message. {_no_s3(endpoint_url)}")
    return StoreError(f"{answered}: {said or 'no reason given'}. Fix: correct what the server names.")


def status(error: ClientError) -> int:
    """The HTTP status of an error response; 0 if unknown."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def retries(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)


def _is_refused(error: Exception | None) -> bool:
    """Whether TLS was refused for a reason that lasts."""
    return isinstance(error, SSLError) and not any(word in str(error) for word in _BROKEN)


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for `url`."""
    return get_environ_proxies(url).get(url.partition(":")[0])


def _endpoint(url: str) -> str:
    """The server's address for a message, with the proxy between it and this machine."""
    proxy = _proxy(url)
    return f"{url} (through the proxy {masked(proxy)})" if proxy else url


def _around_proxy(url: str) -> str:
    return ", or correct HTTP_PROXY and HTTPS_PROXY, or list the host in NO_PROXY" if _proxy(url) else ""


def _no_s3(url: str) -> str:
    return f"It may not be an S3 server. Fix: check s3.endpoint_url (or AWS_ENDPOINT_URL){_around_proxy(url)}."


def _attempts(count: int) -> str:
    return f"{count} attempt{'s' * (count != 1)}"
