"""(Ray) From members to what is served: every way of combining them, the choice, what is dropped, and the calibrator.

Legend: N rows, K members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from dkt_ray.config import Config
from dkt_ray.ensemble.blend import Floats, equal, fixed
from dkt_ray.ensemble.chain import TOLERANCE
from dkt_ray.ensemble.choice import Calibration, Members, Removal, Served, Way, choose, drop, finish, stability
from dkt_ray.ensemble.methods import METHODS, Fit, mean_of
from dkt_ray.log import progress
from dkt_ray.metrics import Estimate
from dkt_ray.training.weights import search_weights

Method = Literal["best", "equal", "fixed", "simplex", "tuned", "greedy", "logit", "logistic", "boosted"]


class CombineConfig(Config):
    """How members are combined."""

    method: Method = "best"
    """best: of the others, the one with the lowest log-loss in nested folds; equal, logit: plain mean of probabilities,
    of log-odds; fixed: the ratio below; simplex: weights with the lowest log-loss; greedy: ensemble selection (Caruana
    et al.); tuned: weights with the highest AUROC among Ray Tune's trials; logistic, boosted: stacking, with the length
    of the history."""
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
    served: Served
    ways: dict[str, Way]  # of all members, before any was dropped
    chosen: Floats | None  # [N] each fold's rows by the method that was best on the other folds
    stability: dict[str, Estimate]  # of the shares of what is served


def combine(config: CombineConfig, members: Members) -> Combined:
    """Combine the members in every way, choose, drop members of no use, and calibrate.

    Raises:
        ConfigError: a ratio or weights that do not name exactly the members.
    """
    fits = _fits(config, members)
    if len(members.names) == 1:
        alone = Way(mean_of(equal(1)), members.p[:, 0])
        return Combined("equal", finish(alone, members, config.calibrator), {"equal": alone}, None, {})
    ways = _compare(config, fits, members)
    method, chosen = choose(ways, members) if config.method == "best" else (config.method, None)
    quick = fits.get(method, METHODS["simplex"])  # Ray Tune's search is not repeated for every removal
    kept, removals = members, list[Removal]()
    if method != "fixed":
        kept, removals = drop(quick, members, config.drop_below, config.at_least)
    way = ways[method] if kept.names == members.names else _way(method, config, fits, kept)
    served = replace(finish(way, kept, config.calibrator), removals=removals)
    return Combined(method, served, ways, chosen, stability(quick, kept, config.seed))


def _fits(config: CombineConfig, members: Members) -> Mapping[str, Fit]:
    given = config.ratio if config.weights is None else config.weights
    if given is None:
        return METHODS
    weighted = mean_of(fixed(given, members.names))
    return {**METHODS, "fixed": lambda p, y, length: weighted}


def _compare(config: CombineConfig, fits: Mapping[str, Fit], members: Members) -> dict[str, Way]:
    ways = {}
    names = [*fits, *(["tuned"] if config.tune_trials else [])]
    with progress("combine members", len(names)) as lines:
        for name in names:
            ways[name] = _way(name, config, fits, members)
            lines.advance(note=name)
    return ways


def _way(name: str, config: CombineConfig, fits: Mapping[str, Fit], members: Members) -> Way:
    if name == "tuned":
        weights, blended = search_weights(members.p, members.y, members.fold, config.tune_trials, config.seed)
        return Way(mean_of(weights), blended)
    return Way(members.fitted(fits[name]), members.nested(fits[name]))
