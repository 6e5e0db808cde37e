"""One S3 client a process: requests that may fail for a moment are tried again, within bounds.

boto3 rather than Arrow's file system. Arrow takes a body that is shorter than asked for as whole
and hands out memory that was never written, as when an object is replaced while it is read; asks
for the size before every read; writes small objects in three requests, of which an error leaves
parts behind; and waits for a silent server for minutes that nothing can be set to shorten.
"""

import logging
import os
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import boto3.session
import botocore.session
import urllib3.exceptions
from botocore import exceptions
from botocore.config import Config

from sdd_ray.errors import ConfigError, SddError, StoreError

_logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 10.0
"""Longest wait for a connection."""
SILENT_SECONDS = 60.0
"""Longest wait for the next bytes of an answer."""
SLOWEST_BYTES_PER_SECOND = 64 << 10
"""A body that comes more slowly, after `SILENT_SECONDS`, is taken for stalled."""
ATTEMPTS = 8
"""Of one request, unless ``AWS_MAX_ATTEMPTS`` says otherwise."""
GIVE_UP_SECONDS = 180.0
"""After which no further attempt at a request begins, unless it is one of the first three."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0
_SURE_ATTEMPTS = 3
_ROLE_ATTEMPTS = "AWS_METADATA_SERVICE_NUM_ATTEMPTS"
_CONNECTIONS = 64
"""Kept open at the most; no fewer than there are threads that read."""

_STATUSES_THAT_PASS = {429, 500, 502, 503, 504}
_CODES_THAT_PASS = {"BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown"}
_HAVE_NO_CREDENTIALS = (
    "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
    " AWS_PROFILE, or give the machine a role"
)
_NO_BUCKET = "{endpoint} has no such bucket; check its name, AWS_ENDPOINT_URL and the region"
_NOT_ACCEPTED = (
    "the credentials are not accepted ({said}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,"
    " AWS_SESSION_TOKEN, the profile and the clock"
)
_BY_CODE = {
    "NoSuchBucket": _NO_BUCKET,
    "ExpiredToken": _NOT_ACCEPTED,
    "InvalidAccessKeyId": _NOT_ACCEPTED,
    "InvalidToken": _NOT_ACCEPTED,
    "RequestTimeTooSkewed": _NOT_ACCEPTED,
    "SignatureDoesNotMatch": _NOT_ACCEPTED,
}
_BY_STATUS = {
    403: "forbidden ({said}): the credentials in use may not do this, or may not list the bucket"
    " and nothing is there",
    404: "nothing is there",
    412: "it was replaced by another while it was read; let its writer finish first",
}


class WrongAnswerError(Exception):
    """The store answered with fewer bytes than it should, or with something else."""


_FAILURES_THAT_PASS = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,  # of TLS, within a body
    WrongAnswerError,
)
_FAILURES = (exceptions.BotoCoreError, exceptions.ClientError, *_FAILURES_THAT_PASS)


@lru_cache(maxsize=1)
def client() -> Any:
    """Return the client of this process, which threads share.

    Credentials, region, ``AWS_ENDPOINT_URL`` and profiles are looked for as boto3 does, and
    ``AWS_REGION`` besides.
    """
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=SILENT_SECONDS,
        retries={"total_max_attempts": 1},  # `attempted` tries again, bodies included
        max_pool_connections=_CONNECTIONS,
        # Checksums that boto3 would add are not understood by every other store.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    session = botocore.session.get_session()
    # Most of the time of a listing goes into its dates, which nobody asks for.
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=str)
    if _ROLE_ATTEMPTS not in os.environ:  # boto3 asks once; many workers start at the same time
        session.set_config_variable("metadata_service_num_attempts", 3)
    try:
        made = boto3.session.Session(region_name=region, botocore_session=session)
        return made.client("s3", config=config)
    except ValueError as error:
        message = f"{error}; AWS_ENDPOINT_URL is to be http://host:port"
        raise exceptions.InvalidConfigError(error_msg=message) from error


def attempted(doing: str, uri: str, call: Callable[[Any], T], failure: type[SddError]) -> T:
    """Return what a call returns, trying again what may pass: at most `ATTEMPTS` times.

    Args:
        doing: What the call does, for the error: "read".
        uri: What it does it to.
        call: Takes the client.
        failure: Raised where only this object cannot be had.

    Raises:
        SddError: A `failure`, or a `StoreError` if the store does not answer other requests either.
    """
    most, start, number = _most_attempts(), time.monotonic(), 0
    while True:
        number += 1
        try:
            return call(client())
        except _FAILURES as error:
            what = f"cannot {doing} {uri}: "
            if not _may_pass(error):
                raise failure(what + explained(error)) from error
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1.0)
            spent = time.monotonic() - start
            tried = f"{number} attempts in {spent:.0f} s failed, the last: {explained(error)}"
            is_in_time = number < _SURE_ATTEMPTS or spent + wait <= GIVE_UP_SECONDS
            if number >= most or not is_in_time:
                raise _given_up(uri, what, tried, failure) from error
        if number >= _SURE_ATTEMPTS:
            _logger.warning("%s%s; trying again", what, tried)
        time.sleep(wait)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the two parts of an s3:// URI; the key of a bucket itself is empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def status_of(error: exceptions.ClientError) -> int:
    """Return the HTTP status of an answer that is an error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def explained(error: Exception) -> str:
    """Return what went wrong, and what to do about it where that is known."""
    if isinstance(error, exceptions.NoCredentialsError):
        return _HAVE_NO_CREDENTIALS
    if not isinstance(error, exceptions.ClientError):
        return str(error) or type(error).__name__
    status, found = status_of(error), error.response.get("Error", {})
    code = found.get("Code", "")
    said = f"{status} {code}" if code != str(status) else code
    known = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if known is None:
        return f"{said}: {found.get('Message', '')}"
    return known.format(said=said, endpoint=client().meta.endpoint_url)


def _most_attempts() -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"AWS_MAX_ATTEMPTS: expected a number of at least 1, got {text}")
    return int(text)


def _may_pass(error: Exception) -> bool:
    if not isinstance(error, exceptions.ClientError):
        return isinstance(error, _FAILURES_THAT_PASS)
    code = error.response.get("Error", {}).get("Code")
    return status_of(error) in _STATUSES_THAT_PASS or code in _CODES_THAT_PASS


def _given_up(uri: str, what: str, tried: str, failure: type[SddError]) -> SddError:
    """Return the error for one object if the store answers the plainest request about others."""
    try:
        client().list_objects_v2(Bucket=bucket_and_key(uri)[0], MaxKeys=1)
    except _FAILURES as error:
        if _may_pass(error):
            return StoreError(
                f"{what}{client().meta.endpoint_url} does not answer; {tried}; check the network,"
                " AWS_ENDPOINT_URL and the region; the same command goes on from what is finished"
            )
    return failure(f"{what}{tried}; the store answers other requests")
