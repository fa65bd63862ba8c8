"""The bundle: everything needed to predict in one folder, addressed by the digest of its manifest.

    manifest.json       what it is and where it came from, and the SHA-256 and size of every other file
    state/              the encoder's fitted state
    questions.parquet   the catalogue: question, test, concepts, count, graded, right, probe
    members/<name>/     one folder per member, as `ensemble.member.save` wrote it
    chain.json          what makes one probability of the members': a combination, and a calibrator
    golden.json         32 made-up requests with the answers that this bundle gave when it was made
    profile.json        what the training data looked like, in bundles since it is there
    users.txt           keyed hashes of the training users, only where DKT_PRIVACY_KEY is set

The digest is the SHA-256 of the bytes of manifest.json, hence of everything. The same inputs give the same digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dkt_ray import config
from dkt_ray.config import Config
from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.errors import BundleError, ConfigError
from dkt_ray.features.encoder import ID_COLUMNS, EncoderState
from dkt_ray.models.base import Model
from dkt_ray.privacy import PRIVACY_KEY, Privacy
from dkt_ray.registry import catalogue, golden
from dkt_ray.registry import profile as profiles
from dkt_ray.registry.profile import Profile
from dkt_ray.storage.atomic import PRIVATE

C = TypeVar("C", bound=Config)

SCHEMA_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
CHAIN: Final = "chain.json"
PACKAGES: Final = ("dkt-ray", "lightgbm", "numba", "numpy", "polars", "pyarrow", "safetensors", "torch")
KINDS: Final = (".json", ".parquet", ".safetensors", ".txt")  # of files; none of them runs code when it is read
NOT_FINITE: Final = re.compile(rb"(?:^|[=\s])-?(?:nan|inf)", re.IGNORECASE)


class FileFacts(Config):
    """What a file must be."""

    sha256: str
    bytes: int


class Provenance(Config):
    """Where a bundle came from; whoever builds one knows this, the bundle keeps it."""

    dataset: str
    """Name of the dataset."""
    dataset_fingerprint: str
    """Fingerprint of the data snapshot."""
    split: dict[str, Any] | None = None
    """Settings of the split that kept the test users from it; None: not recorded."""
    protocol_fingerprint: str | None = None
    """Fingerprint of the evaluation set that the metrics were measured on."""
    members: dict[str, dict[str, Any]]
    """Per member: family, config, best iteration, AUC out of fold."""
    blend: dict[str, Any] = Field(default_factory=dict)
    """How the members were combined."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Metrics of the ensemble out of fold, with their intervals."""


class Manifest(Config):
    """What manifest.json holds."""

    schema_version: int
    numbers: list[str]
    """Numeric features, in order."""
    ids: list[str]
    """Id features, in order."""
    encoder: str
    """Digest of the encoder's state."""
    code: str
    """SHA-256 over the package's source files: the code is part of what predicts."""
    packages: dict[str, str]
    provenance: Provenance
    users: str
    """How the training users are recorded, or why they are not."""
    files: dict[str, FileFacts]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle."""

    digest: str
    folder: Path
    manifest: Manifest
    scorer: Scorer
    catalogue: catalogue.Catalogue
    profile: Profile | None = None
    """What the training data looked like; None: an earlier release made the bundle."""


def build(
    folder: Path,
    state: EncoderState,
    members: Mapping[str, Path],
    chain: Chain,
    provenance: Provenance,
    users: Iterable[str] = (),
    profile: Profile | None = None,
) -> str:
    """Write a bundle into an empty folder.

    Args:
        state: the full encoder state (not one that excludes a fold).
        members: name -> folder that `ensemble.member.save` wrote.
        chain: combines exactly these members.
        users: training users, by the names under which the service stores them; kept only as
            HMAC-SHA256 under the key in DKT_PRIVACY_KEY.
        profile: what the training data looked like.

    Returns:
        The digest.

    Raises:
        BundleError: the parts do not make a bundle that would verify.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BundleError(f"{folder}: not empty; a bundle is built in a folder of its own")
    (folder / "state").mkdir()
    state.collapsed().save(folder / "state")
    pq.write_table(catalogue.table(state), folder / catalogue.FILE, compression="zstd")
    for family, source in members.items():
        shutil.copytree(source, folder / "members" / family)
    _write_json(folder / CHAIN, chain.model_dump(mode="json"))
    if profile is not None:
        _write_json(folder / profiles.FILE, profile.model_dump(mode="json"))
    users_note = _write_users(folder, users)
    _check_finite(folder)
    scorer = _load_scorer(folder)
    _write_json(folder / golden.FILE, golden.make(scorer))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        numbers=list(scorer.state.number_names),
        ids=list(ID_COLUMNS),
        encoder=scorer.state.digest,
        code=code_digest(),
        packages={name: metadata.version(name) for name in PACKAGES},
        provenance=provenance,
        users=users_note,
        files={name: _facts(folder / name) for name in _files(folder)},
    )
    _write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return digest_of(folder)


def digest_of(folder: Path) -> str:
    """The digest under which the bundle in this folder is known.

    Raises:
        BundleError: there is no manifest.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise BundleError(f"{folder / MANIFEST}: no such file; this is not a bundle") from None


def check(folder: Path, digest: str | None = None) -> Manifest:
    """Compare a bundle's files with its manifest; loads nothing.

    Args:
        digest: what the bundle must be; None: whatever it is.

    Raises:
        BundleError: names the file and what differs.
    """
    found = digest_of(folder)
    if digest is not None and found != digest:
        raise BundleError(f"{folder / MANIFEST}: the manifest's SHA-256 is {found}, expected {digest}; fetch it again")
    manifest = _read_manifest(folder)
    _check_files(folder, manifest)
    return manifest


def load(folder: Path, digest: str | None = None) -> Bundle:
    """Check a bundle's files and load it (golden requests are not replayed: see `verify`).

    Args:
        digest: what the bundle must be; None: whatever it is.

    Raises:
        BundleError: names the file and what differs.
    """
    manifest = check(folder, digest)
    _check_finite(folder)  # before the members' own parsers meet the files
    scorer = _load_scorer(folder)
    for name, here in (
        ("numbers", list(scorer.state.number_names)),
        ("ids", list(ID_COLUMNS)),
        ("encoder", scorer.state.digest),
    ):
        listed = getattr(manifest, name)
        if listed != here:
            raise BundleError(f"{folder / MANIFEST}: {name} is {listed}, the state or this package has {here}")
    questions = catalogue.Catalogue(pq.read_table(folder / catalogue.FILE))
    return Bundle(digest_of(folder), folder, manifest, scorer, questions, _profile(folder))


def verify(folder: Path, digest: str | None = None) -> Bundle:
    """Prove that a bundle is whole, finite, and answers its golden requests as it did when it was made (1e-5).

    The requests must be worth it: see `golden.weakness`.

    Run it in a process of its own where the bundle is not trusted yet: LightGBM's parser crashes on some damaged texts.

    Raises:
        BundleError: names the file and what differs.
    """
    bundle = load(folder, digest)
    content = _read_json(folder / golden.FILE)
    difference = golden.replay(content, bundle.scorer)
    if difference is not None:
        raise BundleError(f"{folder / golden.FILE}: {difference}{_changed(bundle.manifest)}")
    weakness = golden.weakness(content, bundle.scorer.state)
    if weakness is not None:
        raise BundleError(f"{folder / golden.FILE}: {weakness}")
    return bundle


def code_digest() -> str:
    """SHA-256 over names and contents of the package's Python files."""
    content = hashlib.sha256()
    root = Path(str(resources.files("dkt_ray")))
    for path in sorted(root.rglob("*.py")):
        content.update(f"{path.relative_to(root).as_posix()}\0{_sha256(path)}\0".encode())
    return content.hexdigest()


def _load_scorer(folder: Path) -> Scorer:
    chain = _read(Chain, folder / CHAIN)
    present = sorted(path.name for path in (folder / "members").glob("*"))
    if present != sorted(chain.members):
        raise BundleError(f"{folder / 'members'}: found {present}, {CHAIN} combines {sorted(chain.members)}")
    state = EncoderState.load(folder / "state")
    members = {name: _load_member(folder / "members" / name, state) for name in chain.members}
    return Scorer(state, members, chain)


def _load_member(folder: Path, state: EncoderState) -> Model:
    try:
        model = member.load(folder)
        model.check(state.number_names)
    except ConfigError as error:
        raise BundleError(f"{folder}: {error}") from None
    return model


def _profile(folder: Path) -> Profile | None:
    path = folder / profiles.FILE
    return _read(Profile, path) if path.exists() else None


def _read(kind: type[C], path: Path) -> C:
    try:
        return config.build(kind, _read_json(path))
    except ConfigError as error:
        raise BundleError(f"{path}: {error}") from None


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    content = _read_json(path)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version is {version!r}, this package reads {SCHEMA_VERSION}; publish the run again with it"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']}") from None


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{folder / MANIFEST}: file name {name!r} leads out of the bundle")
        if path.suffix not in KINDS:
            raise BundleError(f"{path}: not a kind of file that a bundle has ({', '.join(KINDS)}); take it out")
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{path}: missing, though the manifest lists it; fetch the bundle again")
        found = _facts(path)
        if found.bytes != expected.bytes:
            raise BundleError(f"{path}: {found.bytes} bytes, the manifest says {expected.bytes}; fetch it again")
        if found.sha256 != expected.sha256:
            raise BundleError(f"{path}: SHA-256 {found.sha256}, the manifest says {expected.sha256}; fetch it again")
    unlisted = sorted(set(_files(folder)) - set(manifest.files) - {MANIFEST})
    if unlisted:
        raise BundleError(f"{folder}: files {unlisted} are not in the manifest")


def _check_finite(folder: Path) -> None:
    """Refuse NaN and infinities in the members' numbers: safetensors by value, LightGBM's text by line."""
    for path in sorted((folder / "members").rglob("*.safetensors")):
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise BundleError(f"{path}: not readable as safetensors: {error}") from None
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise BundleError(f"{path}: tensor {name} holds values that are not finite")
    for path in sorted((folder / "members").rglob("*.txt")):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.startswith(b"leaf_value=") and NOT_FINITE.search(line):
                raise BundleError(f"{path}: line {number} holds leaf values that are not finite")


def _changed(manifest: Manifest) -> str:
    """What differs between the package that made the bundle and this one, as a hint."""
    here = {name: metadata.version(name) for name in PACKAGES}
    changes = [f"{name} {old} -> {here[name]}" for name, old in manifest.packages.items() if here.get(name, old) != old]
    if manifest.code != code_digest():
        changes.append("the package's code")
    return f"; changed since it was made: {', '.join(changes)}" if changes else ""


def _write_users(folder: Path, users: Iterable[str]) -> str:
    privacy = Privacy.of_environment()
    if privacy.key is None:
        return f"not recorded: {PRIVACY_KEY} was not set"
    hashes = sorted(map(privacy.mark, users))
    (folder / "users.txt").write_text("".join(f"{value}\n" for value in hashes), encoding="ascii")
    return f"users.txt: HMAC-SHA256 under the key of {PRIVACY_KEY}, sorted"


def _files(folder: Path) -> list[str]:
    """All but what a local store leaves beside the files that it writes."""
    found = (path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith(PRIVATE))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _facts(path: Path) -> FileFacts:
    return FileFacts(sha256=_sha256(path), bytes=path.stat().st_size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
