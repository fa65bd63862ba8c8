"""dkt-ray: deep knowledge tracing on Ray, from answer logs to a served, weighted ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dkt_ray.client import Client

__all__ = ["Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`dkt_ray.Client`, imported when it is first asked for: importing the package stays cheap."""
    if name != "Client":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dkt_ray.client import Client

    return Client
