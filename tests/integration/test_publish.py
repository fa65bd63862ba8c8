"""From a run in the store to a verified bundle behind an alias, and the moves of that alias."""

import json

import pytest

from dkt_ray.config import build, load
from dkt_ray.data.splits import TEST
from dkt_ray.errors import BundleError, ConfigError, ConflictError, NotFoundError
from dkt_ray.features.dataset import Dataset
from dkt_ray.pipelines import publish, registry
from dkt_ray.pipelines.publish import PublishConfig
from dkt_ray.pipelines.registry import RegistryConfig
from dkt_ray.privacy import Privacy
from dkt_ray.registry.store import Registry
from dkt_ray.serving.predictor import Predictor
from dkt_ray.storage import open_store
from tests import bundles, runs


@pytest.fixture(scope="module")
def store(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish")
    url = str(folder / "store")
    dataset = runs.prepare_dataset(url, folder)
    runs.make_run(url, dataset)
    runs.make_run(url, dataset, "second", seed=1)
    return url


def registered(store, **settings):
    return registry.run(build(RegistryConfig, {"store": store} | settings))


def test_a_run_becomes_a_bundle_that_scores(store, tmp_path):
    result = publish.run(PublishConfig(store=store))
    lowered = result["metrics"].pop("mastery_lowered")
    assert 0 <= lowered <= 1
    assert result["metrics"] == runs.METRICS
    assert result["promoted"] is False
    assert json.loads(json.dumps(result)) == result
    Registry(open_store(store)).fetch(result["bundle"], tmp_path / "bundle")
    predictor = Predictor.load(tmp_path / "bundle", result["bundle"])
    assert predictor.weights == bundles.WEIGHTS
    provenance = predictor.manifest.provenance
    assert provenance.dataset == "default"
    assert provenance.protocol_fingerprint == "e" * 16
    assert provenance.members["lightgbm"]["auc"] == 0.7
    assert Registry(open_store(store)).alias("champion") is None  # nothing moved


def test_the_same_run_gives_the_same_bundle(store):
    again = [publish.run(PublishConfig(store=store))["bundle"] for _ in range(2)]
    assert again[0] == again[1]
    assert [entry.digest for entry in Registry(open_store(store)).list()].count(again[0]) == 1


def test_promote_rollback_list_and_verify(store):
    first = publish.run(PublishConfig(store=store, promote=True, alias="live"))["bundle"]
    second = publish.run(PublishConfig(store=store, run="second"))["bundle"]
    assert first != second
    assert registered(store, action="verify", bundle="live") == {"bundle": first, "verified": True}
    move = registered(store, action="promote", bundle=second, alias="live", reason="better")
    assert (move["bundle"], move["previous"]) == (second, first)
    assert registered(store, action="rollback", alias="live", reason="worse")["bundle"] == first
    listed = registered(store, alias="live")
    assert listed["alias"] == {"live": first}
    assert [move["reason"] for move in listed["history"]] == ["publish", "better", "worse"]
    assert {first, second} <= {entry["digest"] for entry in listed["bundles"]}
    assert json.loads(json.dumps(listed)) == listed


def test_training_users_are_hashed_with_the_key_and_test_users_are_not_among_them(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DKT_PRIVACY_KEY", "elsewhere")
    digest = publish.run(PublishConfig(store=store))["bundle"]
    Registry(open_store(store)).fetch(digest, tmp_path / "bundle")
    hashes = set((tmp_path / "bundle/users.txt").read_text().split())
    training, test, privacy = set(), set(), Privacy(b"elsewhere")
    split = Dataset.open(open_store(store), "default").split
    for user, fold in zip(split.names, split.fold, strict=True):
        (test if fold == TEST else training).add(privacy.mark(privacy.user(user)))
    assert hashes == training
    assert test
    assert hashes.isdisjoint(test)


def test_what_is_missing_is_named_with_the_remedy(store, tmp_path):
    with pytest.raises(NotFoundError, match="dkt ensemble"):
        publish.run(PublishConfig(store=store, run="never"))
    with pytest.raises(NotFoundError, match="dkt prepare"):
        publish.run(PublishConfig(store=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="bundle is missing"):
        registered(store, action="verify")
    with pytest.raises(NotFoundError, match="expected a digest or an alias"):
        registered(store, action="promote", bundle="nobody")
    with pytest.raises(NotFoundError, match="does not exist"):
        registered(store, action="rollback", alias="nobody")
    with pytest.raises(ConfigError, match="action is 'delete'"):
        registered(store, action="delete")


def test_a_run_on_other_data_is_refused(store):
    run = open_store(store).child("runs/second")
    member = run.read_json("members/lightgbm/member.json")
    run.write_json("members/lightgbm/member.json", member | {"dataset": "0" * 16})
    with pytest.raises(ConfigError, match=r"member lightgbm was fitted on data with fingerprint 0{16}.*dkt tune"):
        publish.run(PublishConfig(store=store, run="second"))
    run.write_json("members/lightgbm/member.json", member)


def test_weights_of_other_members_publish_nothing(store):
    run = open_store(store).child("runs/second")
    member, blend = run.read_json("members/lightgbm/member.json"), run.read_json("blend.json")
    run.write_json("members/lightgbm/member.json", member | {"digest": "tuned-again"})
    with pytest.raises(ConfigError, match=r"member lightgbm .* is tuned-again, .* made anew; run dkt ensemble again"):
        publish.run(PublishConfig(store=store, run="second"))
    run.write_json("members/lightgbm/member.json", member)
    run.write_json("blend.json", {"weights": {"lightgbm": 1.0}})
    with pytest.raises(ConfigError, match=r"blend.json has no chain: an earlier version wrote it; run dkt ensemble"):
        publish.run(PublishConfig(store=store, run="second"))
    run.write_json("blend.json", blend)


def test_weights_off_the_simplex_publish_nothing(store):
    run = open_store(store).child("runs/second")
    blend = run.read_json("blend.json")
    before = Registry(open_store(store)).list()
    half = blend["chain"]["combination"] | {"weights": [0.9, 0.9]}
    run.write_json("blend.json", blend | {"chain": blend["chain"] | {"combination": half}})
    with pytest.raises(ConfigError, match=r"add up to 1\.8; expected 1"):
        publish.run(PublishConfig(store=store, run="second"))
    assert Registry(open_store(store)).list() == before
    run.write_json("blend.json", blend)


def test_a_damaged_bundle_in_the_store_does_not_verify(store):
    digest = publish.run(PublishConfig(store=store, run="second"))["bundle"]
    registered(store, action="promote", bundle=digest, alias="soon-damaged")
    key = f"bundles/{digest}/members/lightgbm/booster.txt"
    whole = open_store(store).read(key)
    from dkt_ray.registry.cache import default_folder

    copy = default_folder() / digest / "members/lightgbm/booster.txt"
    copy.write_bytes(copy.read_bytes()[:-1])  # the local copy is damaged too: it must not be trusted, but fetched again
    registered(store, action="verify", bundle=digest)
    assert copy.read_bytes() == whole
    copy.write_bytes(whole[:-1])
    open_store(store).write(key, whole[:-1])
    with pytest.raises(BundleError, match=r"booster\.txt"):
        registered(store, action="verify", bundle=digest)
    open_store(store).write(key, whole)
    registered(store, action="verify", bundle=digest)


def test_a_second_rollback_needs_somewhere_to_go(store):
    publish.run(PublishConfig(store=store, promote=True, alias="only-one"))
    with pytest.raises(ConflictError, match="nothing to roll back to"):
        registered(store, action="rollback", alias="only-one")


def test_the_config_files_of_the_jobs_are_valid():
    from dkt_ray.pipelines.scoring import ScoreConfig
    from dkt_ray.serving.rollout import RolloutConfig

    load(PublishConfig, "jobs/configs/publish.yaml")
    load(RolloutConfig, "jobs/configs/rollout.yaml", ["bundle=abc"])
    load(ScoreConfig, "jobs/configs/score.yaml")
