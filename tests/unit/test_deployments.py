"""`serving.deployments`: what Serve is told of the application."""

from __future__ import annotations

from pathlib import Path

from dkt_ray.registry.store import Registry
from dkt_ray.serving.deployments import ServeArgs, application
from dkt_ray.storage import open_store
from tests import bundles


def test_a_deployment_keeps_the_replicas_that_load_has_called_for(tmp_path: Path) -> None:
    """Serve 2.60 sets the target of a deployment whose version is new to its initial replicas, if there are any."""
    members = bundles.save_members(tmp_path / "members", 0)
    digest = bundles.build(tmp_path / "bundle", members, {"lightgbm": 0.5, "lstm_attention": 0.5})
    Registry(open_store(tmp_path / "store")).publish(tmp_path / "bundle", digest)
    args = ServeArgs(store=str(tmp_path / "store"), bundle=digest, min_replicas=2, max_replicas=4)
    scaling = application(args)._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.initial_replicas) == (2, 4, None)
