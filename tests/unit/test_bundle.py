"""A bundle is whole, finite, and answers as it did when it was made; anything else is refused with the file's name."""

import hashlib
import hmac
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dkt_ray.errors import BundleError
from dkt_ray.registry import bundle, golden
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import Registry
from dkt_ray.storage import open_store
from tests import bundles
from tests.bad_bundles import edit, seal


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    world = bundles.world()
    members = bundles.save_members(folder / "members")
    digest = bundles.build(folder / "bundle", members)
    return folder, world, members, digest


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0] / "bundle", tmp_path / "bundle"))


def test_a_fresh_bundle_verifies_and_says_where_it_came_from(made):
    folder, world, _, digest = made
    loaded = bundle.verify(folder / "bundle", digest)
    assert loaded.digest == digest == hashlib.sha256((folder / "bundle/manifest.json").read_bytes()).hexdigest()
    assert loaded.scorer.chain.shares == bundles.WEIGHTS
    assert loaded.manifest.provenance.dataset_fingerprint == "0" * 64
    assert loaded.manifest.numbers == list(world.state.number_names)
    assert loaded.manifest.packages["lightgbm"]


def test_the_same_parts_give_the_same_digest_and_other_weights_another(made, tmp_path):
    _, _, members, digest = made
    assert bundles.build(tmp_path / "same", members) == digest
    assert bundles.build(tmp_path / "other", members, {"lightgbm": 0.5, "lstm_attention": 0.5}) != digest


def test_a_member_of_other_features_is_refused_with_both_lists(made, copy):
    """A feature list that the saved model does not know: its columns would be read as others."""
    names = list(made[1].state.number_names)
    other = [names[1], names[0], *names[2:]]
    (copy / "members/lightgbm/encoder.json").write_text(json.dumps(other))
    seal(copy)
    with pytest.raises(BundleError) as refused:
        bundle.load(copy)
    assert "members/lightgbm: the model was fitted on the numeric columns " + ", ".join(other) in str(refused.value)
    assert "the encoder has " + ", ".join(names) in str(refused.value)


def test_a_network_of_a_version_that_kept_no_feature_names_is_refused(copy):
    edit(copy / "members/lstm_attention/network.json", lambda facts: facts.pop("names"))
    seal(copy)
    with pytest.raises(BundleError, match=r"members/lstm_attention: .*no `names`.*train the model again"):
        bundle.load(copy)


def test_a_member_of_a_family_that_this_package_does_not_have_is_refused(copy):
    edit(copy / "members/lstm_attention/form.json", lambda form: form.update(family="gru"))
    seal(copy)
    with pytest.raises(BundleError, match=r"members/lstm_attention: .*'gru'.*this package reads families lightgbm"):
        bundle.load(copy)


def test_no_students_answers_or_names_are_in_a_bundle(made):
    folder = made[0]
    requests = json.loads((folder / "bundle/golden.json").read_text())["requests"]
    assert len(requests) == golden.REQUESTS
    for path in (folder / "bundle").rglob("*"):
        if path.is_file():
            assert b'"u1"' not in path.read_bytes(), path


def test_golden_requests_cover_the_hard_cases(made):
    requests = json.loads((made[0] / "bundle/golden.json").read_text())["requests"]
    lengths = {len(request["history"]) for request in requests}
    assert 0 in lengths
    assert max(lengths) > 2 * bundles.SMALL["lstm_attention"]["context"]
    assert any(golden.UNSEEN in request["targets"] for request in requests)
    assert {"at" in request for request in requests} == {True, False}


@pytest.mark.parametrize(
    "name", ["golden.json", "members/lightgbm/booster.txt", "state/counts.parquet", "questions.parquet"]
)
def test_one_flipped_bit_is_refused_by_name(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}.*SHA-256"):
        bundle.load(copy)


def test_the_locks_of_a_local_store_are_no_files_of_a_bundle(made, tmp_path):
    """Its members lay in one, and so does the bundle afterwards."""
    members = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in made[2].items()}
    for path in members.values():
        (path / ".dkt-lock").touch()
    digest = bundles.build(tmp_path / "bundle", members)
    assert digest == made[3]
    registry = Registry(open_store(str(tmp_path / "store")))
    registry.publish(tmp_path / "bundle", digest)
    assert list((tmp_path / "store/bundles" / digest).rglob(".dkt-lock"))
    bundle.check(tmp_path / "store/bundles" / digest, digest)
    bundle.check(local_copy(registry, digest, tmp_path / "copies"), digest)


def test_truncated_missing_and_unlisted_files_are_refused(copy):
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.bin.*not in the manifest"):
        bundle.load(copy)
    (copy / "extra.bin").unlink()
    weights = copy / "members/lstm_attention/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"weights\.safetensors.*bytes"):
        bundle.load(copy)
    weights.unlink()
    with pytest.raises(BundleError, match=r"weights\.safetensors.*missing"):
        bundle.load(copy)


def test_a_file_name_that_leads_out_of_the_bundle_is_refused(copy):
    edit(copy / "manifest.json", lambda m: m["files"].update({"../other": m["files"]["chain.json"]}))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.load(copy)


def test_the_manifest_itself_is_pinned_by_the_digest(copy, made):
    edit(copy / "manifest.json", lambda m: m["provenance"].update(dataset="another"))
    with pytest.raises(BundleError, match=r"manifest\.json.*expected"):
        bundle.load(copy, made[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=1), "schema_version is 1, this package reads 2; publish the run again"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m["numbers"].reverse(), "numbers is"),
        (lambda m: m.update(encoder="f" * 64), "encoder is"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(copy, change, message):
    edit(copy / "manifest.json", change)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lightgbm": 0.7, "lstm_attention": 0.4}, r"chain.json: setting combination.* add up to 1\.1; expected 1"),
        ({"lightgbm": 1.2, "lstm_attention": -0.2}, "greater than or equal to 0"),
        ({"lightgbm": float("nan"), "lstm_attention": 1.0}, "chain.json: setting combination"),
        ({"lightgbm": 1.0}, r"members: found .* combines \['lightgbm'\]"),
        ({"lightgbm": 0.5, "oracle": 0.5}, r"members: found .* combines \['lightgbm', 'oracle'\]"),
        ({}, "members"),
    ],
)
def test_weights_off_the_simplex_or_without_their_member_are_refused(copy, weights, message):
    chain = {"members": list(weights), "shares": weights}
    chain |= {"combination": {"kind": "probability", "weights": list(weights.values())}}
    (copy / "chain.json").write_text(json.dumps(chain))
    seal(copy)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def test_weights_that_are_not_finite_are_refused(copy):
    path = copy / "members/lstm_attention/weights.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].flat[0] = np.nan
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    seal(copy)
    with pytest.raises(BundleError, match=rf"weights\.safetensors: tensor {name} .*not finite"):
        bundle.load(copy)


def test_leaf_values_that_are_not_finite_are_refused(copy):
    path = copy / "members/lightgbm/booster.txt"
    lines = path.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("leaf_value="))
    lines[at] = "leaf_value=nan " + lines[at].split(" ", 1)[1]
    path.write_text("\n".join(lines) + "\n")
    seal(copy)
    with pytest.raises(BundleError, match=r"booster\.txt: line \d+ holds leaf values"):
        bundle.load(copy)


@pytest.mark.parametrize("key", ["probability", "members"])
def test_a_wrong_golden_answer_under_a_correct_manifest_is_refused(copy, key):
    def change(content):
        column = content["answers"][3][key]
        column = column if key == "probability" else column["lstm_attention"]
        column[2] += 2e-5

    edit(copy / "golden.json", change)
    seal(copy)
    bundle.load(copy)  # the files are what the manifest says; only the answers differ
    name = "ensemble" if key == "probability" else "lstm_attention"
    with pytest.raises(
        BundleError, match=rf"golden\.json: request 3, target 2: {name} answers 0\.\d+, expected 0\.\d+"
    ):
        bundle.verify(copy)


def test_a_bundle_of_other_code_verifies_by_its_answers_or_says_what_changed(copy):
    edit(copy / "manifest.json", lambda m: m.update(code="0" * 64, packages={"lightgbm": "3.0"}))
    bundle.verify(copy)
    edit(copy / "golden.json", lambda g: g["answers"][0]["probability"].__setitem__(0, 0.0))
    seal(copy)
    with pytest.raises(BundleError, match=r"changed since it was made: lightgbm 3\.0 -> .*the package's code"):
        bundle.verify(copy)


def test_training_users_are_recorded_as_keyed_hashes_only(made, tmp_path, monkeypatch):
    _, world, members, _ = made
    without = json.loads((made[0] / "bundle/manifest.json").read_text())
    assert "DKT_PRIVACY_KEY was not set" in without["users"]
    assert "users.txt" not in without["files"]
    monkeypatch.setenv("DKT_PRIVACY_KEY", "a key kept elsewhere")
    bundles.build(tmp_path / "bundle", members)
    found = (tmp_path / "bundle/users.txt").read_text().split()
    key = b"a key kept elsewhere"
    assert found == sorted(hmac.new(key, user.encode(), "sha256").hexdigest() for user in world.histories.users)
    bundle.verify(tmp_path / "bundle")


def test_a_bundle_is_not_built_over_something_else(made, tmp_path):
    (tmp_path / "old").write_text("")
    with pytest.raises(BundleError, match="not empty"):
        bundles.build(tmp_path, made[2])


def test_what_is_no_bundle_says_so(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        bundle.verify(tmp_path)
