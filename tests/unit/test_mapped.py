"""Large arrays are mapped from files that leave nothing behind, and a full disk is said, not fatal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from dkt_ray.errors import StorageError
from dkt_ray.features import mapped
from dkt_ray.features.batch import Rows
from dkt_ray.features.mapped import blank
from dkt_ray.models.lstm import Lstm, LstmConfig
from dkt_ray.training import loop
from tests.contract import world as w


def maps() -> int:
    """Bytes of deleted files that this process maps."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("(deleted)")]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return sum(stop - start for start, stop in spans)


def test_a_large_array_is_mapped_and_a_small_one_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1 << 20)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = maps()
    small, large = blank((1 << 16,), np.int32), blank((1 << 10, 1 << 8), np.float32)
    assert (small.shape, small.dtype, large.shape, large.dtype) == ((1 << 16,), np.int32, (1 << 10, 1 << 8), np.float32)
    assert maps() - before == large.nbytes
    assert type(large) is np.ndarray
    large[:] = np.arange(1 << 8)
    assert large[77].tolist() == list(range(1 << 8))
    assert list(tmp_path.iterdir()) == []  # nothing to be left behind
    del large
    assert maps() == before


def test_a_full_disk_is_said_with_the_remedy(monkeypatch, tmp_path):
    def no_room(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(StorageError, match=rf"no room for 2\.0 GiB .* in {tmp_path}: No space left .* set TMPDIR"):
        blank((1 << 29,), np.float32)


def test_mapped_rows_are_trained_on_without_a_copy_to_the_same_bits(monkeypatch):
    config = LstmConfig(width=4, context=8, epochs=1)

    def fit() -> tuple[Rows, dict[str, object]]:
        data = w.World.of(w.students(12, seed=1, longest=24)).data
        network = Lstm(config, loop.Inputs.of(data.state))
        assert network.flatten(data.train).numbers.data_ptr() == data.train.numbers.ctypes.data
        return data.train, loop.train(Lstm, config, data).model.state_dict()

    _, in_memory = fit()
    before = maps()
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    rows, weights = fit()
    assert maps() - before >= rows.numbers.nbytes
    assert all(np.array_equal(weights[name], tensor) for name, tensor in in_memory.items())


def test_rows_that_may_not_be_written_are_copied():
    data = w.World.of(w.students(12, seed=1, longest=24)).data
    data.train.numbers.flags.writeable = False
    flat = Lstm(LstmConfig(width=4), loop.Inputs.of(data.state)).flatten(data.train)
    assert np.array_equal(flat.numbers.numpy(), data.train.numbers)
    assert flat.numbers.data_ptr() != data.train.numbers.ctypes.data
