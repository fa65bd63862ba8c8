"""The four import contracts of pyproject.toml hold, cover every module, and importing has no side effects."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]

# The only modules that may import ray, directly or through another one; packages stand for all that is in them.
SHELL = {
    "dkt_ray.cli",
    "dkt_ray.session",
    "dkt_ray.pipelines",
    "dkt_ray.data.ray_engine",
    "dkt_ray.serving.deployments",
    "dkt_ray.serving.fleet",
    "dkt_ray.serving.loopback",
    "dkt_ray.serving.preflight",
    "dkt_ray.serving.ray_series",
    "dkt_ray.serving.replica",
    "dkt_ray.serving.rollback",
    "dkt_ray.serving.rollout",
    "dkt_ray.serving.service",
    "dkt_ray.serving.trial",
    "dkt_ray.training.folds",
    "dkt_ray.training.live",
    "dkt_ray.training.sampling",
    "dkt_ray.training.schedulers",
    "dkt_ray.training.search",
    "dkt_ray.training.sequence_trainer",
    "dkt_ray.training.trial",
    "dkt_ray.training.tuning",
    "dkt_ray.training.weights",
}
SHARED_BY_MODELS = {
    "dkt_ray.models.base",
    "dkt_ray.models.dropout",
    "dkt_ray.models.layers",
    "dkt_ray.models.lookup",
    "dkt_ray.models.network",
    "dkt_ray.models.optimization",
    "dkt_ray.models.trees",
    "dkt_ray.models.visible",
    "dkt_ray.models.catalog",
}


def modules() -> list[str]:
    """Every module of the package; a package's __init__ is left out where it is empty or a docstring."""
    paths = sorted((ROOT / "dkt_ray").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def contract(name: str) -> dict:
    [found] = [each for each in CONTRACTS if each["name"] == name]
    return found


def covered(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_import_linter_keeps_all_contracts():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 4 kept, 0 broken" in done.stdout


def test_every_module_is_pure_or_in_the_shell():
    pure = set(contract("Ray stays in the shell")["source_modules"])
    mixed = {module for module in modules() if any(other.startswith(f"{module}.") for other in SHELL)}
    missing = [m for m in modules() if not covered(m, pure) and not covered(m, SHELL) and m not in mixed | {"dkt_ray"}]
    assert not missing, "add them to source_modules of 'Ray stays in the shell' in pyproject.toml"
    assert not [module for module in modules() if covered(module, pure) and covered(module, SHELL)]
    assert not [module for module in SHELL if module not in modules()]


def test_every_model_file_is_in_the_independence_contract():
    files = {module for module in modules() if module.startswith("dkt_ray.models.")}
    assert set(contract("Models do not know each other")["modules"]) == files - SHARED_BY_MODELS


def test_importing_has_no_side_effects(tmp_path):
    """No file written, no process started, no output, no log handler, no Ray, no Transformers (it takes seconds)."""
    paths = sorted([*(ROOT / "jobs").glob("*.py"), *(ROOT / "serve_app").glob("*.py")])
    scripts = [f"{path.parent.name}.{path.stem}" for path in paths]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, *modules(), *scripts],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"handlers": [], "children": 0, "ray": False, "transformers": False}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "without"),
    [
        (  # whoever deploys; a replica unpickles it, and imports the rest with the garbage collector off
            "dkt_ray.serving.deployments",
            ("alembic", "lightgbm", "numba", "polars", "scipy", "sklearn", "sqlalchemy", "torch"),
        ),
        (  # a replica: what only training, pages and pipelines use
            "dkt_ray.serving.replica",
            ("alembic", "gradio", "lightgbm", "optuna", "plotly", "sklearn", "dkt_ray.pipelines", "dkt_ray.training"),
        ),
    ],
)
def test_a_replica_imports_nothing_that_it_never_uses(module, without):
    """Its start is processor time, which a rollout under load takes from the requests."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert module in found
    assert not [name for name in without if name in found]


PROBE = """
import importlib, json, logging, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import psutil
ray = sys.modules.get("ray")
print(json.dumps({
    "handlers": [str(h) for h in logging.getLogger("dkt_ray").handlers],
    "children": len(psutil.Process().children()),
    "ray": bool(ray and ray.is_initialized()),
    "transformers": "transformers" in sys.modules,
}))
"""
