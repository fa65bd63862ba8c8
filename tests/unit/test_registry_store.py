"""The registry over a local store; tests/integration/test_s3.py asks the same of a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from dkt_ray.storage import Store, open_store
from tests.registry_promises import RegistryPromises, digests, registry

__all__ = ["digests", "registry"]  # fixtures


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


class TestRegistryInAFolder(RegistryPromises):
    pass
