"""What all tests share: hypothesis profiles, one Ray cluster, one real S3 server, and the real logs where they are."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE

# Ray, torch and OpenMP read these when they are first imported or started, hence before any test module.
os.environ |= EVERYWHERE | ON_THIS_MACHINE | {"GRADIO_ANALYTICS_ENABLED": "False", "RAY_worker_niceness": "0"}

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

pytest_plugins = ["tests.plugins", "tests.postgres"]
pytest.register_assert_rewrite("tests.store_promises", "tests.registry_promises", "tests.event_promises")

BUCKET = "s3://dkt-test"


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[str]:
    """A real S3 server (SeaweedFS) on loopback, the AWS_* environment set for it; gives the url of an empty bucket."""
    folder = Path(tempfile.mkdtemp(prefix="dkt-s3-", dir="/tmp"))  # short: unix sockets live there
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ACCESS_KEY_ID", "dkt-test-key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "dkt-test-secret")
        environment.setenv("AWS_REGION", "us-east-1")
        with _weed(folder) as port:
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            yield BUCKET
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(seaweedfs: str) -> Iterator[None]:
    """One in-process Ray cluster for the session; S3 is up before it, because workers inherit the environment then."""
    import ray

    folder = tempfile.mkdtemp(prefix="dkt-ray-", dir="/tmp")  # short: unix sockets live there
    ray.init(
        num_cpus=4,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real logs (EdNet excerpts)."""
    if not os.environ.get("DKT_REAL_DATA"):
        pytest.skip("DKT_REAL_DATA is not set")
    return Path(os.environ["DKT_REAL_DATA"])


@contextmanager
def _weed(folder: Path) -> Iterator[int]:
    """Run SeaweedFS in a folder; gives the S3 port when the bucket is there."""
    keys = {"accessKey": os.environ["AWS_ACCESS_KEY_ID"], "secretKey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "dkt", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(8)
    services = zip(("master", "volume", "filer", "s3"), ports[:4], ports[4:], strict=True)
    command = [
        shutil.which("weed", path=Path(sys.executable).parent) or "weed",
        *("-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3"),
        *(flag for name, http, grpc in services for flag in (f"-{name}.port={http}", f"-{name}.port.grpc={grpc}")),
        *(f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"),
        *("-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder}/s3.json"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=50"),
    ]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, preexec_fn=_die_with_parent
        )
    try:
        _make_bucket(server, ports[3], folder / "weed.log")
        yield ports[3]
    finally:
        server.kill()  # asked politely it takes 20 s; nothing in it is worth keeping
        server.wait()
        for left in [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]:
            left.unlink()


def _die_with_parent() -> None:
    """Linux: the kernel kills this process when the test run is killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _make_bucket(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", config=once)
    give_up = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=BUCKET.removeprefix("s3://"))
            client.put_object(Bucket=BUCKET.removeprefix("s3://"), Key="ready", Body=b"yes")  # volumes are up too
            client.delete_object(Bucket=BUCKET.removeprefix("s3://"), Key="ready")
        except (BotoCoreError, ClientError) as error:
            if server.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"SeaweedFS did not come up ({error}):\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        else:
            return


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports
