"""(Ray) Keep a replica's internal port off the network where Ray is on this machine only."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

LOOPBACK: Final = "127.0.0.1"


def keep_on_loopback() -> None:
    """Bind the port that Serve opens in each replica to 127.0.0.1; call it in a replica's constructor.

    Ray 2.60 binds it to all interfaces, whatever address its other ports have (`ReplicaBase._on_initialized`), asks for
    no token there, and unpickles what it receives. On a cluster of several machines other nodes need it: there the
    network must be private (docs/operations.md).
    """
    if import_module("ray.util").get_node_ip_address() != LOOPBACK:
        return
    serve_replica: Any = import_module("ray.serve._private.replica")
    bind = serve_replica.add_port_to_grpc_server

    def bind_loopback(server: Any, address: str) -> int:
        return int(bind(server, address.replace("[::]", LOOPBACK)))

    serve_replica.add_port_to_grpc_server = bind_loopback
