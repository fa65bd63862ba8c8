"""Every bad bundle is refused before it meets traffic, by the check that is meant for it."""

import pytest

from dkt_ray.errors import BundleError
from dkt_ray.registry import bundle
from dkt_ray.registry.clean_process import Budget, check_size, verify_apart
from dkt_ray.storage import open_store
from tests import bundles
from tests.bad_bundles import BAD, Bad, edit, make


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    bundles.build(folder / "bundle", bundles.save_members(folder / "members"))
    return folder / "bundle"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_bundle_is_refused_for_its_own_reason(good, tmp_path, name):
    bad = BAD[name]
    digest = make(bad, good, tmp_path / "bundle")
    budget = Budget(**bad.budget or {})
    with pytest.raises(BundleError, match=bad.reason):
        refuse(tmp_path / "bundle", digest, bad.apart, budget)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], r"manifest\.json: files: Input should be"),
        ({"chain.json": {"sha256": "0"}}, r"manifest\.json: files\.chain\.json\.bytes: Field required"),
        ({"chain.json": {"sha256": "0", "bytes": -1}}, r"chain\.json: \d+ bytes, the manifest says -1"),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_words(good, tmp_path, files, reason):
    digest = make(
        Bad(lambda folder: edit(folder / "manifest.json", lambda content: content.update(files=files)), reason),
        good,
        tmp_path / "bundle",
    )
    with pytest.raises(BundleError, match=reason):
        refuse(tmp_path / "bundle", digest, apart=False, budget=Budget())


def refuse(folder, digest, apart, budget):
    """What a rollout does, in this process where that is enough."""
    check_size(open_store(folder.parent), folder.name, budget)
    if apart:
        verify_apart(folder, digest, 300.0, budget)
    bundle.verify(folder, digest)
