"""`serving.deployments`: what Serve is told of the application."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from dkt_ray.registry.store import Registry
from dkt_ray.serving import deployments, replica
from dkt_ray.serving.deployments import Replica, ServeArgs, application
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


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("sqlite:///data/events.db", "sqlite:///{here}/data/events.db"),
        ("sqlite:////var/lib/events.db", "sqlite:////var/lib/events.db"),
        ("postgresql+psycopg://host/database", "postgresql+psycopg://host/database"),
    ],
)
def test_replicas_find_the_database_from_folders_of_their_own(given, bound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digest = bundles.build(tmp_path / "bundle", bundles.save_members(tmp_path / "members", 0))
    Registry(open_store(tmp_path / "store")).publish(tmp_path / "bundle", digest)
    made = application(ServeArgs(store="store", bundle=digest, events=given))
    assert made._bound_deployment.init_args[0].events == bound.format(here=tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_a_replica_collects_no_garbage_while_it_loads_and_leaves_alone_what_is_loaded(fails, monkeypatch):
    """Collections would go through all that is loaded, again and again."""
    seen = []

    def load(args: ServeArgs) -> str:
        seen.append((gc.isenabled(), args.bundle))
        if fails:
            raise OSError("no such bundle")
        return "loaded"

    monkeypatch.setattr(deployments, "keep_on_loopback", lambda: None)
    monkeypatch.setattr(replica, "Loaded", load)
    start = partial(Replica.__mro__[1].__init__, SimpleNamespace())  # without Serve's part
    try:
        if fails:
            with pytest.raises(OSError, match="no such bundle"):
                start(ServeArgs(), "digest")
        else:
            start(ServeArgs(), "digest")
        assert seen == [(False, "digest")]
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
