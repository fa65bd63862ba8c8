"""What somebody may have done to a bundle; but for `flip_a_bit` its manifest agrees with the files again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from tests.unit.test_bundle import edit, seal


def flip_a_bit(folder: Path) -> None:
    """Not sealed: the digests tell."""
    path = folder / "members/lightgbm/booster.txt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def wrong_golden(folder: Path) -> None:
    """One recorded answer is another."""
    edit(folder / "golden.json", lambda content: content["answers"][5]["probability"].__setitem__(0, 0.123456))
    seal(folder)


def crash_the_parser(folder: Path) -> None:
    """A tree with more leaves than it says: LightGBM's parser ends the process."""
    path = folder / "members/lightgbm/booster.txt"
    lines = path.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("leaf_value="))
    lines[at] = "leaf_value=0 0 0 0 0 0 0 " + lines[at].split("=", 1)[1]
    path.write_text("\n".join(lines) + "\n")
    seal(folder)


def truncated(folder: Path) -> None:
    """Half of the booster."""
    path = folder / "members/lightgbm/booster.txt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seal(folder)


def nan_weights(folder: Path) -> None:
    """One number of a network is none."""
    _reweigh(folder, lambda weights: np.where(np.arange(weights.size) == 0, np.nan, weights.ravel()))


def constant(folder: Path) -> None:
    """A network that answers everybody alike."""
    _reweigh(folder, lambda weights: np.zeros(weights.size))


def missing_member(folder: Path) -> None:
    """The chain counts on a member that is not there."""
    shutil.rmtree(folder / "members/lightgbm")
    edit(
        folder / "manifest.json",
        lambda content: [content["files"].pop(name) for name in list(content["files"]) if "/lightgbm/" in name],
    )
    seal(folder)


def other_features(folder: Path) -> None:
    """The booster wants columns in another order."""
    edit(folder / "manifest.json", lambda content: content["numbers"].reverse())


def wrong_version(folder: Path) -> None:
    """Written by a package from the future."""
    edit(folder / "manifest.json", lambda content: content.update(schema_version=content["schema_version"] + 1))


def swapped_members(folder: Path) -> None:
    """Each member counts as much as another one should."""
    edit(folder / "chain.json", lambda content: content["members"].reverse())
    seal(folder)


def empty_vocabulary(folder: Path) -> None:
    """No question is known."""
    path = folder / "state/profile.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    seal(folder)


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    damage.__name__: damage
    for damage in (
        *(flip_a_bit, wrong_golden, crash_the_parser, truncated, nan_weights, constant, missing_member),
        *(other_features, wrong_version, swapped_members, empty_vocabulary),
    )
}


def _reweigh(folder: Path, change: Callable[[Any], Any]) -> None:
    path = sorted(folder.glob("members/*/weights.safetensors"))[0]
    tensors = load_file(path)
    name = max(tensors, key=lambda each: tensors[each].size)
    before = tensors[name]
    tensors[name] = np.ascontiguousarray(change(before).reshape(before.shape).astype(before.dtype))
    save_file(tensors, path)
    seal(folder)
