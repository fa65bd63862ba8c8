"""The yardstick of simulated data: what a model could reach at best, and how much of the way to it each model goes.

The oracle knows the students' traits and state, which nobody can. A particle filter (`data.simulation.filter`) knows
the simulator but sees only the histories, as a model does. It foresees a sample of the students; every model is
measured on the same ones, and closes (AUROC - counting) / (filter - counting) of the gap between the two.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dkt_ray import metrics
from dkt_ray.data.history import Coded, Histories, Int64
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.data.simulation.bank import build_bank
from dkt_ray.data.simulation.filter import PARTICLES, filtered
from dkt_ray.errors import ConfigError, InputError, NotFoundError
from dkt_ray.features.dataset import Manifest
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.log import progress
from dkt_ray.metrics import Estimate
from dkt_ray.pipelines.figures import Answers, Contender, Settings, read_truth
from dkt_ray.storage import open_object
from dkt_ray.training.protocol import Scored, locate

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

FILTER: Final = "filter"
ORACLE: Final = "oracle"
COUNTING: Final = "counting"
AT_ONCE: Final = 20  # students between two lines of progress


@dataclasses.dataclass(frozen=True)
class Simulator:
    """What the evaluation knows of simulated data."""

    truth: str  # the simulator's truth.parquet; its manifest.json lies beside it
    users: int = 0  # sample that the filter foresees; 0: no yardstick
    particles: int = PARTICLES

    @classmethod
    def of(cls, truth: str | None, users: int, particles: int) -> Simulator | None:
        """The settings of a job; None where the data are not simulated.

        Raises:
            ConfigError: a yardstick of data that nobody simulated.
        """
        if truth is None:
            if users:
                raise ConfigError(
                    f"yardstick={users} is for simulated data only: its filter knows the simulator that made them; set "
                    "truth to the truth.parquet of dkt simulate, or yardstick to 0"
                )
            return None
        return cls(truth, users, particles)

    def config(self) -> SimulateConfig:
        """What the data were simulated with.

        Raises:
            ConfigError: the manifest of the simulation is not there, or of another version.
        """
        store, _ = open_object(self.truth)
        try:
            return SimulateConfig.model_validate(store.read_json("manifest.json")["config"])
        except (NotFoundError, KeyError, ValueError) as error:
            raise ConfigError(
                f"the yardstick needs the manifest.json of dkt simulate beside truth={self.truth}, and cannot read it "
                f"({error}); simulate the data again, or set yardstick to 0"
            ) from None

    def check(self, manifest: Manifest) -> None:
        """Refuse a yardstick that would not be one, before the work starts.

        Raises:
            ConfigError: as `config`, or a dataset whose models see when a simulated question was answered, or not the
                answers of the same test.
        """
        if not self.users:
            return
        self.config()
        encoder = EncoderConfig.model_validate(manifest.config["encoder"])
        if encoder.timestamp_is == "shown":
            raise ConfigError(
                "the yardstick is of models that see no answer's time before it is given, and the dataset says "
                "encoder.timestamp_is=shown of times of submission; prepare it with submitted, or set yardstick to 0"
            )
        if encoder.bundle == "test_run":
            raise ConfigError(
                "the yardstick's filter sees the answers of a test one after the other, which models of a dataset with "
                "encoder.bundle=test_run may not; prepare it with none, or set yardstick to 0"
            )


def oracle(simulator: Simulator | None, manifest: Manifest, base: Scored) -> dict[str, Contender]:
    """The true probabilities of the scored rows, as a contender, where the data are simulated.

    Raises:
        ConfigError: the dataset's rows are not the simulator's.
    """
    if simulator is None:
        return {}
    return {ORACLE: Contender("oracle", read_truth(simulator.truth, manifest, base))}


def yardstick(
    simulator: Simulator | None,
    histories: Histories,
    base: Scored,
    answers: Answers,
    contenders: Mapping[str, Contender],
    how: Settings,
) -> dict[str, Any]:
    """What a report adds for simulated data: every contender and the filter on a sample of the students.

    Args:
        histories: at least those of the scored students, with all rows.
        base: the scored rows.
        answers: the same rows, as the report's figures read them.
        contenders: their scores of the same rows; `counting` is among them.

    Returns:
        Nothing without a yardstick; else `yardstick`: users, rows, particles and, by model, kind, auc and closed (the
        share of the gap; None for the oracle).

    Raises:
        ConfigError: the data are not those of the simulator.
    """
    if simulator is None or not simulator.users:
        return {}
    users = sample(base, simulator.users, how.seed)
    kept = np.isin(base.user.codes, users) & answers.headline
    foreseen = _foreseen(simulator, histories, base.user.values[users], base, kept, how.seed)
    several = {name: Contender(c.kind, c.probability[kept]) for name, c in contenders.items()}
    several[FILTER] = Contender("filter", foreseen)
    found = {
        "users": len(users),
        "rows": int(kept.sum()),
        "particles": simulator.particles,
        "models": closed(answers.at(kept), several, how),
    }
    return {"yardstick": found}


def sample(base: Scored, users: int, seed: int) -> Int64:
    """Codes of the students of the sample, drawn at random from all who have scored rows; all if there are fewer."""
    there = np.unique(base.user.codes).astype(np.int64)
    return np.sort(np.random.default_rng(seed).permutation(there)[:users])


def closed(answers: Answers, contenders: Mapping[str, Contender], how: Settings) -> dict[str, dict[str, Any]]:
    """AUROC of every contender, and the share of the gap between counting model and filter that it closes.

    Intervals are of resamples of the students, the same ones for all.
    """
    index = np.unique(answers.user, return_inverse=True)[1]
    users = int(index.max(initial=-1)) + 1
    statistics = {name: metrics.auc_statistic(answers.y, c.probability, index) for name, c in contenders.items()}
    drawn = metrics.bootstrap(statistics, users, how.samples, how.seed)
    value = {name: np.array([statistic(np.ones(users))]) for name, statistic in statistics.items()}

    def share(name: str) -> Estimate:
        at_all, at_samples = (_share(of[name], of[COUNTING], of[FILTER]) for of in (value, drawn))
        return metrics.estimate(float(at_all[0]), at_samples)

    return {
        name: {
            "kind": contender.kind,
            "auc": metrics.estimate(float(value[name][0]), drawn[name]),
            "closed": None if contender.kind == "oracle" else share(name),
        }
        for name, contender in contenders.items()
    }


def _share(auc: Floats, low: Floats, high: Floats) -> Floats:
    """Share of the gap; nan where there is none."""
    gap = np.where(high > low, high - low, np.nan)
    return (auc - low) / gap


def _foreseen(
    simulator: Simulator, histories: Histories, names: Any, base: Scored, kept: npt.NDArray[np.bool_], seed: int
) -> Floats:
    """The filter's probabilities of the kept rows."""
    config = simulator.config()
    bank = build_bank(config.parameters.bank, config.bank_fraction)
    chosen = np.flatnonzero(np.isin(histories.users.astype(str), names.astype(str)))
    parts = []
    with progress("particle filter", len(chosen)) as lines:
        for first in range(0, len(chosen), AT_ONCE):
            some = histories.select(chosen[first : first + AT_ONCE])
            try:
                parts.append(filtered(some, bank, config.parameters, simulator.particles, seed))
            except InputError as error:
                raise ConfigError(
                    f"truth={simulator.truth} is not of this dataset: {error}; set yardstick to 0"
                ) from None
            lines.advance(len(some.users))
    seen = histories.select(chosen)
    owner = np.repeat(np.arange(len(chosen), dtype=np.int32), seen.lengths)
    position = (np.arange(seen.rows) - seen.offsets[owner]).astype(np.int32)
    place = locate(Coded(owner, seen.users), position, base)[kept]
    assert (place >= 0).all(), "scored rows that the histories do not have"
    return np.concatenate(parts)[place]
