"""The one door to files: a local folder or `s3://bucket/prefix` behind the same whole-object operations.

Endpoint, region and credentials of S3 come from the standard AWS_* environment variables and from nowhere else, so that
a `Store` is its url: it can be pickled, sent to a Ray task and used there.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from dkt_ray.errors import StorageError
from dkt_ray.storage.aws import SCHEME
from dkt_ray.storage.bucket import S3Store
from dkt_ray.storage.inputs import INPUT_SUFFIXES, input_bytes, list_inputs, open_input
from dkt_ray.storage.local import LocalStore
from dkt_ray.storage.store import Store, checked, json_bytes, parse_json

__all__ = [
    "INPUT_SUFFIXES",
    "Store",
    "input_bytes",
    "json_bytes",
    "list_inputs",
    "open_input",
    "open_object",
    "open_store",
    "parse_json",
]


def open_store(url: str | Path) -> Store:
    """Open a folder (made on the first write) or an `s3://bucket/prefix`; nothing is read or written yet."""
    url = str(url)
    if url.startswith(SCHEME):
        bucket, _, prefix = url.removeprefix(SCHEME).rstrip("/").partition("/")
        if not bucket:
            raise StorageError(f"store {url!r} names no bucket; expected s3://bucket/prefix")
        return S3Store(f"{SCHEME}{bucket}/{checked(prefix)}" if prefix else f"{SCHEME}{bucket}")
    if "://" in url or not url:
        raise StorageError(f"store {url!r}: unknown kind of storage; expected a folder or s3://bucket/prefix")
    return LocalStore(str(Path(url).expanduser().absolute()))


def open_object(url: str) -> tuple[Store, str]:
    """The store that holds one file or object, and its key there."""
    parent, key = posixpath.split(url)
    return open_store(parent or "."), key
