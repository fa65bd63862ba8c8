"""Part (b) over S3: the job from a bucket to a bucket of a SeaweedFS server on loopback, with its requests counted."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks import ray_job

BUCKET: Final = "dkt-benchmark"
KEYS: Final = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-secret", "AWS_REGION": "us-east-1"}
START_S: Final = 60
SERVICES: Final = ("master", "volume", "filer", "s3")
REQUESTS: Final = re.compile(r"^SeaweedFS_s3_request_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
KIND: Final = re.compile(r'type="([^"]*)"')


class Server(NamedTuple):
    """A running SeaweedFS."""

    environment: Mapping[str, str]  # AWS_* of its clients
    metrics: str  # url


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Upload simulated logs, run the job from s3:// to s3://, and count the requests that it made, by kind."""
    files = ray_job.logs(folder / f"logs-{rows}", rows)
    with seaweedfs() as server:
        for path in files:
            _client(server.environment).upload_file(str(path), BUCKET, f"logs/{path.name}")
        before = requests(server)
        environment = ray_job.ENVIRONMENT | dict(server.environment)
        ran, result = ray_job.prepare(f"s3://{BUCKET}/logs/*.csv", f"s3://{BUCKET}/store", environment)
        made = requests(server) - before
    figures = ray_job.figures_of(ran, result)
    return figures | {"requests": sum(made.values()), "requests_by_kind": dict(made.most_common()), "cache": "warm"}


def requests(server: Server) -> Counter[str]:
    """Requests that the server has answered, by kind."""
    with urllib.request.urlopen(server.metrics, timeout=10) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for line in REQUESTS.finditer(text):
        kind = KIND.search(line["labels"])
        found[kind[1] if kind else "other"] += int(float(line["count"]))
    return found


@contextmanager
def seaweedfs() -> Iterator[Server]:
    """A server with one empty bucket, in a folder of its own that is deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dkt-s3-", dir="/tmp"))  # short: unix sockets live there
    keys = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "benchmark", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(9)
    services = zip(SERVICES, ports[:4], ports[4:8], strict=True)
    command = [
        shutil.which("weed", path=Path(sys.executable).parent) or "weed",
        *("-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3"),
        *(flag for name, http, grpc in services for flag in (f"-{name}.port={http}", f"-{name}.port.grpc={grpc}")),
        *(f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"),
        *("-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder}/s3.json"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=50"),
        *("-metricsIp=127.0.0.1", f"-metricsPort={ports[8]}"),
    ]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, preexec_fn=_die_with_parent
        )
    try:
        environment = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[3]}"}
        _make_bucket(environment)
        yield Server(environment, f"http://127.0.0.1:{ports[8]}/metrics")
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for left in [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]:
            left.unlink()


def _client(environment: Mapping[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=60),
    )


def _make_bucket(environment: Mapping[str, str]) -> None:
    """Wait until the server takes a bucket and an object."""
    client = _client(environment)
    give_up = time.monotonic() + START_S
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")  # volumes are up too
        except (BotoCoreError, ClientError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
        else:
            return


def _die_with_parent() -> None:
    """Linux: the kernel kills this process when the benchmark is killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports
