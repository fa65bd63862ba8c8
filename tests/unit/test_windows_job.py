"""`dkt windows`: the counts of every strategy, from raw logs and from histories alike."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dkt_ray import cli
from dkt_ray.config import build
from dkt_ray.data.adapters import catalog
from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.simulate import SimulateConfig, Simulation, simulate, write
from dkt_ray.data.windows import STRATEGIES
from dkt_ray.errors import InputError
from dkt_ray.features.dataset import Dataset
from dkt_ray.pipelines.windows import WindowsConfig, count, interactions, read, run
from dkt_ray.storage import Store, open_store
from tests import datasets


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(SimulateConfig(users=40, bank_fraction=0.1, test_fraction=0.2, seed=1))


@pytest.fixture(scope="module")
def logs(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write(simulation, open_store(str(folder)))
    return folder


def test_the_job_counts_what_a_plain_count_finds(simulation, logs, capsys, caplog):
    assert cli.main(["windows", "--set", f"path={logs}/t*_data.csv"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    histories = simulation.histories(hide=True)
    user, test = np.repeat(np.arange(40), histories.lengths), histories.test.strings()
    rows = [(u, t) for u, t, answer in zip(user, test, histories.correct, strict=True) if answer >= 0]
    found, without = result["strategies"], result["without_test_users"]
    assert list(found) == [*STRATEGIES, "last, balanced"]
    assert result["rows"] - result["visible_rows"] == simulation.is_test.sum() == 8
    assert found["user_test"]["windows"] == found["user_head_mid"]["windows"] == len(set(rows))
    assert found["user_head"]["windows"] == len({(u, t[:4]) for u, t in rows})
    assert found["chunk_rows"]["windows"] == sum(-(-n // 20) for n in Counter(u for u, _ in rows).values())
    assert found["chunk_rows"]["answers"] == found["context"]["answers"] == result["visible_rows"]
    assert without["last"]["windows"] == 32
    assert without["last"]["rows"] == np.minimum(histories.lengths, 100)[~simulation.is_test].sum()
    assert without["context"]["answers"] == histories.lengths[~simulation.is_test].sum()
    assert found["sliding"]["repeats"] == round(found["sliding"]["rows"] / histories.rows, 4) > 1


def test_raw_logs_are_read_as_prepare_reads_them(simulation, logs):
    expected, found = simulation.histories(hide=True), read(DataConfig(path=f"{logs}/t*_data.csv"))
    order = np.argsort(expected.users.astype(str))
    expected = expected.select(order)
    assert found.users.tolist() == expected.users.tolist()
    assert found.correct.tolist() == expected.correct.tolist()
    assert found.test.strings().tolist() == expected.test.strings().tolist()


def test_a_dataset_counts_as_its_logs_do(simulation, logs, tmp_path, monkeypatch):
    histories = simulation.histories(hide=True)
    opened = []

    def prepared(store: Store, name: str) -> SimpleNamespace:
        opened.append(name)
        return SimpleNamespace(load_histories=lambda: (histories, np.zeros(len(histories.users), np.int8)))

    monkeypatch.setattr(Dataset, "open", prepared)
    found = run(build(WindowsConfig, {"store": str(tmp_path), "dataset": "mine"}))
    assert opened == ["mine"]
    expected = run(build(WindowsConfig, {"path": f"{logs}/t*_data.csv"}))
    drawn = "last, balanced", "random"  # by the order of the users, which differs here
    for counts in ("strategies", "without_test_users"):
        for name in expected[counts].keys() - drawn:
            assert found[counts][name] == expected[counts][name]


def test_questions_of_another_form_are_grouped_by_their_test():
    def coded(*values: str) -> Coded:
        return Coded.of(list(values))

    histories = Histories(
        users=np.array(["a"], object),
        offsets=np.array([0, 5]),
        question=coded("q1", "q2", "q3", "A010002001", "A010002002"),
        test=coded("one", "two", "one", "A010000002", "A010000002"),
        concepts=Coded.constant("", 5),
        correct=np.ones(5, np.int8),
    )
    counted = count(interactions(histories), WindowsConfig(), True)
    assert counted["user_head_mid"].windows == counted["user_test"].windows == 3
    assert counted["user_head"].windows == 2


def test_logs_without_a_row_are_an_error(tmp_path):
    (tmp_path / "empty.csv").write_text("userID,assessmentItemID,testId,answerCode,Timestamp,KnowledgeTag\n")
    with pytest.raises(InputError, match="there is no valid row"):
        run(build(WindowsConfig, {"path": str(tmp_path / "empty.csv")}))


def test_bad_rows_are_counted_in_a_warning(tmp_path, caplog):
    lines = ["userID,assessmentItemID,answerCode", "a,q1,1", "a,q2,7", "b,q1,0"]
    (tmp_path / "logs.csv").write_text("\n".join(lines) + "\n")
    assert read(DataConfig(path=str(tmp_path / "logs.csv"))).users.tolist() == ["a", "b"]
    assert "1 bad rows are left out" in caplog.text


FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMATS = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())


@pytest.mark.parametrize("fixture", FORMATS)
def test_raw_logs_of_every_format_are_counted(fixture, tmp_path):
    """As `dkt prepare` reads them."""
    data = {"path": str(FIXTURES / fixture), "max_rejected": 1, "test_fraction": 0, "folds": 2}
    datasets.run(data["path"], tmp_path, data=data)
    prepared, _ = datasets.opened(tmp_path).load_histories()
    found = run(build(WindowsConfig, {"path": data["path"]}))
    assert found["rows"] == prepared.rows
    assert found["users"] == len(prepared.users)
    assert found["strategies"]["user_test"]["windows"] > 0


def test_there_is_a_fixture_of_every_format():
    found = {catalog.find([str(FIXTURES / name)], "auto", {}).format.name for name in FORMATS}
    assert found == set(catalog.FORMATS)


def test_a_wrong_format_names_the_right_one():
    with pytest.raises(InputError, match=r"set --set data\.format=riiid"):
        run(build(WindowsConfig, {"path": str(FIXTURES / "riiid"), "format": "pykt"}))
