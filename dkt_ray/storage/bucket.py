"""A store in an S3 bucket."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow.fs as pafs
from botocore.exceptions import ClientError

from dkt_ray.storage import aws
from dkt_ray.storage.aws import SCHEME
from dkt_ray.storage.store import Keys, Store, checked, conflict

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_CHUNK: Final = 1 << 20
_LOST: Final = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")  # to another writer


class S3Store(Store):
    """Objects of a bucket under a prefix."""

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        with aws.connection(f"{self.url}/{key}") as client:
            answer = client.get_object(Bucket=self._bucket, Key=self._name(key))
            return answer["Body"].read(), answer["ETag"]

    def write(self, key: str, data: bytes) -> str:
        with aws.connection(f"{self.url}/{key}") as client:
            return client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data)["ETag"]

    def write_if(self, key: str, data: bytes, match: str | None) -> str:
        condition: Any = {"IfNoneMatch": "*"} if match is None else {"IfMatch": match}
        with aws.connection(f"{self.url}/{key}") as client:
            try:
                return client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data, **condition)["ETag"]
            except ClientError as error:
                if aws.code(error) not in _LOST:
                    raise
                retried = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
        if retried and self.exists(key):
            found, version = self.read_versioned(key)
            if found == data:  # our first attempt won and its answer was lost on the way
                return version
        raise conflict(f"{self.url}/{key}", match)

    def exists(self, key: str) -> bool:
        # a listing, because a HEAD answers 404 without a reason for a missing bucket too
        name = self._name(key)
        with aws.connection(f"{self.url}/{key}") as client:
            return name in _names(client.list_objects_v2(Bucket=self._bucket, Prefix=name, MaxKeys=1))

    def list(self, prefix: str = "") -> Keys:
        folder = self._name(prefix.rstrip("/")) + "/" if prefix else self._root
        with aws.connection(f"{self.url}/{prefix}") as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder)
            names = [name for page in pages for name in _names(page)]
        return sorted(name.removeprefix(self._root) for name in names if not name.endswith("/"))

    def delete(self, key: str) -> None:
        with aws.connection(f"{self.url}/{key}") as client:
            client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def delete_prefix(self, prefix: str) -> None:
        for key in self.list(checked(prefix.rstrip("/"))):
            self.delete(key)

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        return aws.filesystem(), self.url.removeprefix(SCHEME)

    def _send(self, source: Path, key: str) -> None:
        with aws.connection(f"{self.url}/{key}") as client, source.open("rb") as content:
            client.put_object(Bucket=self._bucket, Key=self._name(key), Body=content)

    def _receive(self, key: str, target: Path) -> None:
        with aws.connection(f"{self.url}/{key}") as client, target.open("xb") as file:
            shutil.copyfileobj(client.get_object(Bucket=self._bucket, Key=self._name(key))["Body"], file, _CHUNK)

    @property
    def _bucket(self) -> str:
        return self.url.removeprefix(SCHEME).partition("/")[0]

    @property
    def _root(self) -> str:
        prefix = self.url.removeprefix(SCHEME).partition("/")[2]
        return f"{prefix}/" if prefix else ""

    def _name(self, key: str) -> str:
        return self._root + checked(key)


def _names(page: ListObjectsV2OutputTypeDef) -> list[str]:
    """The names in a page of a listing; KeyError (see `aws.connection`) where it is some other web server's page."""
    return [item["Key"] for item in page.get("Contents", [])] if page["Name"] else []
