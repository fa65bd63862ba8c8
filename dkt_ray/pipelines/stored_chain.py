"""The ensemble that `dkt ensemble` leaves in a run: its chain in blend.json, and the members that it was fitted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dkt_ray.config import build
from dkt_ray.ensemble.chain import Chain
from dkt_ray.errors import ConfigError, NotFoundError
from dkt_ray.storage import Store

BLEND: Final = "blend.json"
HEADLINES: Final = ("auc", "auc_capped", "accuracy", "log_loss", "brier", "ece")  # kept with the weights


def read_facts(folder: Store, wanted: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """member.json of each member of a run, by name.

    Raises:
        NotFoundError: the run has no members, or not the wanted ones.
    """
    keys = [key.split("/") for key in folder.list("members")]
    there = [parts[1] for parts in keys if parts[2:] == ["member.json"]]
    missing = [name for name in wanted or () if name not in there]
    if missing or not there:
        raise NotFoundError(
            f"no member {', '.join(missing) or 'at all'} in {folder.url} (there: {', '.join(there) or 'none'}); "
            "make members with dkt tune"
        )
    return {name: folder.read_json(f"members/{name}/member.json") for name in wanted or there}


def read_chain(folder: Store) -> tuple[dict[str, Any], Chain, dict[str, dict[str, Any]]]:
    """blend.json of a run, its chain, and member.json of each member of it.

    Raises:
        NotFoundError: the run has no ensemble yet.
        ConfigError: an earlier version combined its members, or the members were made anew since.
    """
    again = "run dkt ensemble again"
    try:
        blend = folder.read_json(BLEND)
    except NotFoundError:
        raise NotFoundError(f"no {BLEND} in {folder.url}; make it with dkt ensemble") from None
    if "chain" not in blend:
        raise ConfigError(f"{folder.url}/{BLEND} has no chain: an earlier version wrote it; {again}")
    try:
        chain = build(Chain, blend["chain"])
    except ConfigError as error:
        raise ConfigError(f"{folder.url}/{BLEND}: {error}; {again}") from None
    facts = read_facts(folder, chain.members)
    for name, fact in facts.items():
        if (then := blend.get("members", {}).get(name)) != fact["digest"]:
            raise ConfigError(
                f"member {name} of {folder.url} is {fact['digest']}, and its weight was found for {then}: it was made "
                f"anew; {again}"
            )
    return blend, chain, facts


def write_chain(report: Mapping[str, Any], chain: Chain, facts: Mapping[str, Mapping[str, Any]], folder: Store) -> None:
    """Write blend.json, which `dkt publish` and `dkt evaluate` read.

    Args:
        report: of `dkt ensemble`.
        chain: that is served.
        facts: member.json of every member.
        folder: of the run.
    """
    ensemble = report["models"]["ensemble"]
    blend_json = {
        "method": report["method"],
        "chain": chain.model_dump(mode="json"),
        "members": {name: facts[name]["digest"] for name in chain.members},
        "digest": report["digest"],
        "metrics": {name: ensemble[name] for name in HEADLINES},
        "fingerprint": report["fingerprint"],
    }
    folder.write_json(BLEND, blend_json)
