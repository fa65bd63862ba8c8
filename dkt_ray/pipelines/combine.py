"""(Ray) From members to what is served: every way of combining them, the choice, what is dropped, and the calibrator.

Legend: N rows, K members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from dkt_ray.config import Config
from dkt_ray.ensemble.blend import Floats, equal, fixed
from dkt_ray.ensemble.chain import TOLERANCE, Chain
from dkt_ray.ensemble.choice import SAMPLE_ROWS, Calibration, Choice, Members, Removal, Way, drop, stability
from dkt_ray.ensemble.methods import METHODS, Fit, best_of, mean_of, spread
from dkt_ray.log import progress
from dkt_ray.training.weights import draw_weights

Method = Literal["best", "equal", "fixed", "simplex", "tuned", "greedy", "logit", "logistic", "boosted"]


class CombineConfig(Config):
    """How members are combined."""

    method: Method = "best"
    """best: of the others, the one with the highest AUROC in nested folds; equal: plain mean; fixed: the ratio below;
    simplex: weights with the lowest log-loss, logit: the same of log-odds; greedy: ensemble selection (Caruana et al.);
    tuned: weights with the highest AUROC among Ray Tune's trials; logistic, boosted: stacking, with the length of the
    history."""
    ratio: dict[str, float] | None = None
    """Fixed weights as a ratio, e.g. {bert: 8, saint: 1, lightgbm: 0.5, lstm_attention: 0.5}."""
    weights: dict[str, float] | None = None
    """Fixed weights that add up to 1."""
    tune_trials: int = Field(default=12, ge=0)
    """Trials of the search by Ray Tune; 0: no search."""
    drop_below: float = Field(default=0.0005, ge=0)
    """A member whose removal costs less AUROC than this is dropped (but not from fixed weights)."""
    at_least: int = Field(default=1, ge=1)
    """Members that stay in any case."""
    calibrator: Calibration = "best"
    """What may end the chain; it stays only where it lowers the nested log-loss."""
    seed: int = 0
    """Seed of the bootstrap and of the search."""

    @field_validator("method", mode="before")
    @classmethod
    def _can_be_served(cls, method: Any) -> Any:
        if method == "rank":
            raise ValueError("ranks order a table, but one request alone has none: it is compared, never served")
        return method

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.ratio is not None and self.weights is not None:
            raise ValueError("give ratio or weights, not both")
        if self.weights is not None and not abs(sum(self.weights.values()) - 1.0) <= TOLERANCE:
            raise ValueError(
                f"weights are {self.weights} and add up to {sum(self.weights.values()):g}; expected 1 (a ratio may "
                "add up to anything: set ratio instead)"
            )
        if self.method == "fixed" and self.ratio is None and self.weights is None:
            raise ValueError("method=fixed needs a ratio or weights; method=equal is the plain mean")
        if self.method == "tuned" and not self.tune_trials:
            raise ValueError("method=tuned needs trials; set tune_trials to 1 or more, or choose another method")
        return self


class Combined(NamedTuple):
    """What became of the members."""

    method: str
    chain: Chain  # what is served
    uncalibrated: Floats  # [N] by chains that left the row's own fold out, without their calibrator
    calibrated: Floats  # [N] the same with it
    ways: dict[str, Way]
    removals: list[Removal]
    stability: dict[str, dict[str, float | None]]  # of the shares of what is served
    rows: int  # that chains are fitted on and chosen by


@dataclass(frozen=True, eq=False)
class _Ways:
    """The methods of a run, for all or some of its members."""

    names: tuple[str, ...]
    given: Floats | None  # [K] fixed weights
    drawn: Floats | None  # [T, K] weights that Ray Tune tried

    def fits(self, kept: Sequence[str]) -> dict[str, Fit]:
        """The fits of some of the members, the simplest first; drawn weights are normalised to them.

        Fixed weights are of all members or of none: they do not speak for some of them.
        """
        places = [self.names.index(name) for name in kept]
        fits: dict[str, Fit] = {"equal": METHODS["equal"]}
        if self.given is not None and len(places) == len(self.names):
            weighted = mean_of(_normalised(self.given[None, places])[0])
            fits["fixed"] = lambda p, y, length: weighted
        if self.drawn is not None:
            fits["tuned"] = best_of(_normalised(self.drawn[:, places]))
        return fits | dict(METHODS)


def combine(config: CombineConfig, members: Members) -> Combined:
    """Combine the members in every way, choose, drop members of no use, and calibrate.

    Raises:
        ConfigError: a ratio or weights that do not name exactly the members.
    """
    sample = members.at(spread(len(members.y), SAMPLE_ROWS))
    ways = _ways(config, sample)
    whole = Choice(sample, ways.fits(sample.names), config.calibrator)
    folds = np.unique(members.fold).tolist()
    compared = _compare(whole, folds)
    kept, removals = sample, list[Removal]()
    if (method := _among(whole, config).method()) != "fixed":
        kept, removals = drop(_stand_in(method), sample, config.drop_below, config.at_least)
    fits = ways.fits(kept.names)
    choice = _among(whole if kept.names == sample.names else Choice(kept, fits, config.calibrator), config)
    chain, chains = choice.chain(), {fold: choice.chain(frozenset({fold})) for fold in folds}
    return Combined(
        method=choice.method(),
        chain=chain,
        uncalibrated=members.scored(lambda fold: chains[fold].combination.apply, kept.names),
        calibrated=members.scored(lambda fold: chains[fold].apply, kept.names),
        ways=compared,
        removals=removals,
        stability=stability(fits[choice.method()], kept, config.seed),
        rows=len(sample.y),
    )


def _ways(config: CombineConfig, sample: Members) -> _Ways:
    ratio = config.ratio if config.weights is None else config.weights
    given = None if ratio is None else fixed(ratio, sample.names)
    search = config.tune_trials and len(sample.names) > 1
    return _Ways(
        sample.names, given, draw_weights(sample.p, sample.y, config.tune_trials, config.seed) if search else None
    )


def _compare(choice: Choice, folds: Sequence[int]) -> dict[str, Way]:
    """Every method on all members, of which one needs no method."""
    names = tuple(choice.fits) if len(choice.members.names) > 1 else ("equal",)
    found = {}
    with progress("combine members", len(names)) as lines:
        for name in names:
            without = {fold: choice.combination(name, frozenset({fold})) for fold in folds}
            found[name] = Way(choice.combination(name), without)
            lines.advance(note=name)
    return found


def _among(choice: Choice, config: CombineConfig) -> Choice:
    """The choice among the methods that the settings allow; one member needs none."""
    if config.method == "best" and len(choice.members.names) > 1:
        return choice
    return choice.only("equal" if len(choice.members.names) == 1 else config.method)


def _stand_in(method: str) -> Fit:
    """What members are tried without: trials of Ray Tune are not repeated for every removal."""
    return METHODS.get(method, METHODS["simplex"])


def _normalised(weights: Floats) -> Floats:
    """Rows of weights that add up to 1; equal ones where nothing is left."""
    totals = weights.sum(axis=1, keepdims=True)
    return np.where(totals > 0, weights / np.where(totals > 0, totals, 1.0), equal(weights.shape[1]))
