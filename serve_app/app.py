"""The prediction API, for `serve deploy serve_app/serve.yaml`, `serve run serve_app.app:api` and `serve.run`."""

# No `from __future__ import annotations` here: Serve reads the annotation to turn the YAML's args into `ServeArgs`.

from ray.serve import Application

from dkt_ray.serving.deployments import ServeArgs, application


def api(args: ServeArgs) -> Application:
    """Builder of the application `api`."""
    return application(args)
