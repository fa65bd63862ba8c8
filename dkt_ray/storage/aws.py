"""The connection to S3: a client and an Arrow file system from the AWS_* environment, and S3's errors in words."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pyarrow.fs as pafs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as Unreachable
from botocore.parsers import ResponseParserError

from dkt_ray.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCHEME: Final = "s3://"

_CONNECT_S: Final = 2  # 3 attempts with pauses of <= 1 s and <= 2 s between: a wrong endpoint fails within 10 s
_READ_S: Final = 30
_ATTEMPTS: Final = 3
_CONNECTIONS: Final = 16

_KEYS: Final = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN)"
_REMEDIES: Final = {
    "NoSuchBucket": "the bucket does not exist; create it, or check the url and AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": f"the access key is not known there; {_KEYS}",
    "SignatureDoesNotMatch": f"the secret key is wrong; {_KEYS}",
    "AccessDenied": f"access is denied; {_KEYS} and what that key may do",
    "ExpiredToken": f"the credentials have expired; {_KEYS}",
    "InvalidToken": f"the session token is wrong; {_KEYS}",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "404": "does not answer like S3; check AWS_ENDPOINT_URL",
    "NetworkConnection": "cannot be reached; check AWS_ENDPOINT_URL and the network",
}


@contextmanager
def connection(url: str) -> Iterator[S3Client]:
    """The client of this process, with its errors about `url` put into words.

    Raises:
        NotFoundError: no object under the key.
        StorageError: no such bucket, credentials refused or missing, endpoint unreachable; with the remedy.
    """
    try:
        yield _client(tuple(sorted(_environment().items())), os.getpid())
    except ClientError as error:
        raise _refusal(url, error) from None
    except (NoCredentialsError, PartialCredentialsError):
        raise StorageError(
            f"{url}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except (HTTPClientError, Unreachable) as error:
        raise StorageError(f"{url}: {_place()} {_REMEDIES['NetworkConnection']} ({error})") from None
    except (ResponseParserError, KeyError):
        raise StorageError(f"{url}: {_place()} {_REMEDIES['404']}") from None
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"{url}: {error}; check the url, AWS_ENDPOINT_URL and AWS_REGION") from None


def code(error: ClientError) -> str:
    """S3's name of an error."""
    return str(error.response["Error"]["Code"])


def filesystem() -> pafs.FileSystem:
    """An Arrow file system with the endpoint and region of the environment (credentials by Arrow's standard chain)."""
    settings = _environment()
    scheme, _, host = settings.get("endpoint", "").rpartition("://")
    return pafs.S3FileSystem(
        region=settings["region"],
        endpoint_override=host or None,
        scheme=scheme or None,
        connect_timeout=_CONNECT_S,
        request_timeout=_READ_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )


def explain(url: str, error: OSError) -> StorageError:
    """Arrow's error about `url` in words."""
    if isinstance(error, FileNotFoundError):
        return _absence(url)
    found = re.search(r"AWS Error ([A-Z_]+)", str(error))
    name = found[1].title().replace("_", "") if found else ""
    return StorageError(f"{url}: {_REMEDIES.get(name, str(error))}")


def _absence(url: str) -> StorageError:
    """Why an object is not there: Arrow asks by HEAD, which does not tell a missing key from a missing bucket."""
    try:
        if url.startswith(SCHEME):
            with connection(url) as client:
                client.list_objects_v2(Bucket=url.removeprefix(SCHEME).partition("/")[0], MaxKeys=1)
    except StorageError as error:
        return error
    return NotFoundError(f"{url}: nothing is stored there")


def _environment() -> dict[str, str]:
    names = {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "key": ("AWS_ACCESS_KEY_ID",),
        "secret": ("AWS_SECRET_ACCESS_KEY",),
        "token": ("AWS_SESSION_TOKEN",),
    }
    found = {what: next((os.environ[n] for n in options if os.environ.get(n)), "") for what, options in names.items()}
    return {"region": "us-east-1"} | {what: value for what, value in found.items() if value}


@functools.lru_cache(maxsize=4)
def _client(environment: tuple[tuple[str, str], ...], process: int) -> S3Client:
    """One client for an environment and a process (a fork must not share sockets)."""
    import boto3
    from botocore.config import Config

    settings = dict(environment)
    config: Any = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=_CONNECTIONS,
        s3={"addressing_style": "path" if "endpoint" in settings else "auto"},
        request_checksum_calculation="when_required",  # servers other than AWS reject the trailing checksum
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    return session.client("s3", region_name=settings["region"], endpoint_url=settings.get("endpoint"), config=config)


def _refusal(url: str, error: ClientError) -> StorageError:
    name = code(error)
    if name == "NoSuchKey":
        return NotFoundError(f"{url}: nothing is stored there")
    known = _REMEDIES.get("AccessDenied" if name == "403" else name)
    return StorageError(f"{url}: {_place()}: {known or f'{error}; check AWS_ENDPOINT_URL'}")


def _place() -> str:
    return _environment().get("endpoint", "AWS S3")
