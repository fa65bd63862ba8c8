"""Fifteen ways in which a bundle can be bad though its manifest agrees with its files: its own check must catch it.

Each is made of any good bundle that has a booster and a network among its members. And one bundle (`failing_network`)
whose fault no check can know of: what the running service must bear.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.ensemble.families import FORM
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.features.encoder import EncoderState
from dkt_ray.registry import bundle, golden
from dkt_ray.registry.clean_process import MIB
from tests import bundles

BOOSTER, WEIGHTS = "booster.txt", "weights.safetensors"
LARGE_MIB, SLOW_MS = 64, 50  # a good bundle needs less
PASSES = 250  # of a network over each history, which no machine makes within SLOW_MS


@dataclass(frozen=True)
class Bad:
    """A way of being bad, and how it is refused."""

    damage: Callable[[Path], None]
    reason: str
    apart: bool = False  # only a process of its own finds it, or survives it
    budget: dict[str, float] | None = None


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def failing_network(folder: Path, question: str) -> str:
    """Build a bundle of three members that no check can refuse, and give its digest.

    Its `network` (0.3; the others are `lightgbm`, 0.5, and `second`, 0.2) answers NaN where one question is asked or
    was answered, which no golden request has.
    """
    one, two = (bundles.save_members(folder.with_name(f"{folder.name}_members{seed}"), seed) for seed in (0, 1))
    members = {"lightgbm": one["lightgbm"], "second": two["lightgbm"], "network": one["lstm_attention"]}
    bundles.build(folder, members, {"lightgbm": 0.5, "second": 0.2, "network": 0.3})
    known, path = bundles.world().state.vocabularies["question"], folder / "members/network" / WEIGHTS
    tensors = load_file(path)
    row = tensors["inputs.embed.tables.question.weight"][known[question]]
    largest = np.finfo(row.dtype).max  # finite, but what the first layer adds up is not
    row[:] = np.copysign(largest, tensors["inputs.target_row.ids.weight"][0, : len(row)])
    save_file(tensors, path)
    asked, another = folder / golden.FILE, next(name for name in known if name != question)
    asked.write_text(asked.read_text().replace(json.dumps(question), json.dumps(another)))
    answer_anew(folder)
    seal(folder)
    return bundle.digest_of(folder)


def seal(folder: Path) -> None:
    """Make the manifest agree with the files that are there, as somebody who tampers with a bundle would."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    del files["manifest.json"]
    facts = {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for name, path in files.items()
    }
    edit(folder / "manifest.json", lambda manifest: manifest.update(files=facts))


def part(folder: Path, file: str) -> Path:
    """The folder of a booster or a network: the first that has such a file."""
    return min((folder / "members").rglob(file)).parent


def member_of(folder: Path, file: str) -> Path:
    """The folder of the member that has the part."""
    members = folder / "members"
    return members / part(folder, file).relative_to(members).parts[0]


def answer_anew(folder: Path) -> None:
    """Make the golden answers agree with what the bundle says now."""
    state = EncoderState.load(folder / "state")
    chain = Chain.model_validate_json((folder / "chain.json").read_text())
    scorer = Scorer(state, {name: member.load(folder / "members" / name) for name in chain.members}, chain)
    requests = json.loads((folder / "golden.json").read_text())["requests"]
    answers = golden.answers(scorer, requests)
    (folder / "golden.json").write_text(json.dumps({"requests": requests, "answers": answers}))
    edit(folder / "manifest.json", lambda manifest: manifest.update(encoder=state.digest))


def make(bad: Bad, good: Path, folder: Path) -> str:
    """Copy a good bundle, damage it, seal it; returns its digest."""
    shutil.copytree(good, folder)
    bad.damage(folder)
    return bundle.digest_of(folder)


def sealed(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    """The damage, and the manifest agrees again."""

    def both(folder: Path) -> None:
        damage(folder)
        seal(folder)

    return both


def _truncated(folder: Path) -> None:
    path = part(folder, WEIGHTS) / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _not_finite(folder: Path) -> None:
    path = part(folder, WEIGHTS) / WEIGHTS
    tensors = load_file(path)
    next(tensors[name] for name in sorted(tensors) if tensors[name].dtype.kind == "f").flat[0] = np.nan
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


def _leaves(folder: Path, change: Callable[[str], str]) -> None:
    for path in member_of(folder, BOOSTER).rglob(BOOSTER):
        lines = path.read_text().splitlines()
        changed = [f"leaf_value={change(line[11:])}" if line.startswith("leaf_value=") else line for line in lines]
        path.write_text("\n".join(changed) + "\n")


def _constant(folder: Path) -> None:
    """Every leaf 0, and all the weight on it: 0.5 for everybody."""
    _leaves(folder, lambda values: re.sub(r"\d", "0", values))  # as long as before: the text says how long trees are
    weights = {path.name: 0.0 for path in sorted((folder / "members").iterdir())} | {
        member_of(folder, BOOSTER).name: 1.0
    }
    (folder / "chain.json").write_text(Chain.weighted(weights).model_dump_json())
    answer_anew(folder)


def _swapped(folder: Path) -> None:
    one, other, aside = member_of(folder, BOOSTER), member_of(folder, WEIGHTS), folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _empty_vocabulary(folder: Path) -> None:
    """No question was answered often enough to be known."""
    edit(folder / "state/state.json", lambda state: state["config"].update(min_count=10**9))
    answer_anew(folder)


def _wrong_golden(folder: Path) -> None:
    edit(folder / "golden.json", lambda content: content["answers"][5]["probability"].__setitem__(0, 0.123456))


def _other_package(folder: Path) -> None:
    """Trees that another LightGBM scores otherwise."""
    _leaves(folder, lambda values: values.translate(str.maketrans("1234", "4321")))
    edit(folder / "manifest.json", lambda manifest: manifest["packages"].update(lightgbm="3.0"))


def _few_golden(folder: Path) -> None:
    def shorten(content: dict[str, Any]) -> None:
        for name in ("requests", "answers"):
            content[name] = content[name][:1] * golden.REQUESTS

    edit(folder / "golden.json", shorten)


def _oversized(folder: Path) -> None:
    """Nothing is wrong but the size of a file: the same weights behind a long remark."""
    path = part(folder, WEIGHTS) / WEIGHTS
    save_file(load_file(path), path, {"remark": "." * (LARGE_MIB * MIB)})


def _slow(folder: Path) -> None:
    """Nothing is wrong but the time: a network is read again and again, for answers that count nothing."""
    network = part(folder, WEIGHTS)
    if not _is_shift(network.parent):
        aside = network.rename(folder / "aside")
        network.mkdir()
        network = aside.rename(network / "0")
        (network.parent / FORM).write_text('{"shift": 1}')

    def again(form: dict[str, Any]) -> None:
        weights = form.get("weights") or [1.0] * form["shift"]
        form.update(shift=form["shift"] + PASSES, weights=weights + [0.0] * PASSES)

    edit(network.parent / FORM, again)


def _is_shift(folder: Path) -> bool:
    return (folder / FORM).exists() and "shift" in json.loads((folder / FORM).read_text())


BAD = {
    "truncated": Bad(sealed(_truncated), r"weights\.safetensors: not readable"),
    "not finite": Bad(sealed(_not_finite), r"weights\.safetensors: tensor .* not finite"),
    "other features": Bad(
        sealed(lambda folder: edit(part(folder, BOOSTER) / "encoder.json", list.reverse)),
        r"members/\w+: the model was fitted on the numeric columns",
    ),
    "missing member": Bad(
        sealed(lambda folder: shutil.rmtree(member_of(folder, BOOSTER))), r"members: found \[.*\], chain\.json combines"
    ),
    "oversized": Bad(
        sealed(_oversized), r"its files are [\d.]+ MiB, above the budget of 64; raise", budget={"files_mib": LARGE_MIB}
    ),
    "wrong schema version": Bad(
        lambda folder: edit(folder / "manifest.json", lambda manifest: manifest.update(schema_version=99)),
        "schema_version is 99",
    ),
    "slow": Bad(sealed(_slow), r"latency_ms is .*, above the budget of 50", apart=True, budget={"latency_ms": SLOW_MS}),
    "constant": Bad(sealed(_constant), r"golden\.json: every answer is 0\.5000"),
    "swapped members": Bad(sealed(_swapped), r"golden\.json: request 0, target 0: \w+ answers"),
    "empty vocabulary": Bad(sealed(_empty_vocabulary), "vocabulary, which has 0 questions"),
    "wrong golden answers": Bad(sealed(_wrong_golden), r"golden\.json: request 5, target 0: ensemble answers"),
    "wrong package version": Bad(sealed(_other_package), r"changed since it was made: .*lightgbm 3\.0 -> "),
    "pickle inside": Bad(
        sealed(lambda folder: (part(folder, BOOSTER) / "model.pkl").write_bytes(b"\x80\x04N.")),
        r"model\.pkl: not a kind of file that a bundle has",
    ),
    "crashes the parser": Bad(
        sealed(lambda folder: _leaves(folder, lambda values: f"0 0 0 0 0 0 0 {values}")),
        r"ended the process with signal \d+",
        apart=True,
    ),
    "golden requests that cover nothing": Bad(sealed(_few_golden), r"golden\.json: 1 different requests"),
}
