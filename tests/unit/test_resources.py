"""`training.resources`: a fit keeps to its share, and a worker gives back what its earlier fits have freed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dkt_ray.training.resources import Resources, claimed


def test_a_fit_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    import torch
    from threadpoolctl import threadpool_info

    before = {pool["prefix"]: pool["num_threads"] for pool in threadpool_info()}
    with claimed(Resources(cpus=2.5)):
        assert os.environ["OMP_NUM_THREADS"] == "2"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert torch.get_num_threads() == 2
    assert {pool["prefix"]: pool["num_threads"] for pool in threadpool_info()} == before
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("1", "0,1")


@pytest.mark.parametrize(("gpus", "limits"), [(0, []), (0.25, [0.25]), (1, []), (2, [])])
@pytest.mark.parametrize("present", [True, False])
def test_a_fit_on_a_part_of_a_gpu_keeps_to_that_part_of_its_memory(
    gpus: float, limits: list[float], present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    with claimed(Resources(gpus=gpus)):
        assert found == (limits if present else [])
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0,1" if gpus else "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_fit_starts_without_the_memory_of_the_one_before() -> None:
    below_its_own_mapping = 64 << 10  # bytes: glibc maps larger ones by themselves, and gives those back at once
    held = [np.ones(below_its_own_mapping, np.uint8) for _ in range(3000)]
    last = held.pop()  # what lies above the others keeps the heap from shrinking
    full = _own_memory()
    held.clear()
    with claimed(Resources()):
        assert _own_memory() < full - 100 * 1024
    assert last.all()


def _own_memory() -> int:
    """In kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
