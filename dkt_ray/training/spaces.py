"""Search spaces as a reader may write them: checked, and laid over those of the families, before a sweep starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from dkt_ray.config import Config, build
from dkt_ray.errors import ConfigError
from dkt_ray.models.base import Between, Choice, ModelSpec, Space


class Domain(Config):
    """What one setting may be: {low, high, log, integer}, or a list of values."""

    low: float | None = None
    """Least value of a number."""
    high: float | None = None
    """Greatest value of a number."""
    log: bool = False
    """Try the orders of magnitude alike."""
    integer: bool = False
    """Whole numbers only."""
    values: tuple[Any, ...] | None = None
    """One of these, instead of a number between two bounds; a plain list says the same."""
    default: Any = None
    """Value of the first trial, where the family's own default lies outside."""

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log or self.integer:
                raise ValueError("give values, or low and high, not both")
            if not self.values:
                raise ValueError("there is no value to choose from; list at least one")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a number needs low and high; anything else a list of values")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g} or not finite; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, and it is {self.low:g}; raise low or set log: false")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(f"integer needs whole bounds, and they are {self.low:g} and {self.high:g}")
        return self

    def plain(self) -> Between | Choice:
        """The same as the families say it."""
        if self.values is not None:
            return Choice(self.values)
        assert self.low is not None
        assert self.high is not None
        return Between(self.low, self.high, self.log, self.integer)


def contains(domain: Between | Choice, value: Any) -> bool:
    """Whether a setting of this value could have been drawn."""
    if isinstance(domain, Choice):
        return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in domain.values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return domain.low <= value <= domain.high and (not domain.integer or value == int(value))


def within(space: Space, settings: Mapping[str, Any]) -> bool:
    """Whether settings name every dimension of a space, each with a value inside it."""
    return all(name in settings and contains(domain, settings[name]) for name, domain in space.items())


def laid_over(
    family: str, spec: ModelSpec, fixed: Mapping[str, Any], wanted: Mapping[str, Domain]
) -> tuple[Space, dict[str, Any], dict[str, Any]]:
    """A family's space with some dimensions replaced or added by config, and without what is fixed.

    Args:
        family: for messages.
        spec: of that family.
        fixed: settings that do not vary.
        wanted: dimensions that config gives.

    Returns:
        The space; the first trial's values of it; all other settings.

    Raises:
        ConfigError: a setting that the family does not have or that is fixed, too, a value that it may not have, or a
            default outside its dimension; it names them and says what helps.
    """
    try:
        settings = build(spec.config, fixed).model_dump(mode="json")
    except ConfigError as error:
        raise ConfigError(f"overrides.{family}: {error}") from None
    for name, domain in wanted.items():
        if name in fixed:
            raise ConfigError(
                f"spaces.{family}.{name} varies what is fixed at {fixed[name]!r} (overrides.{family}, or seed); leave "
                "one of them out"
            )
        settings[name] = _first(family, name, domain, spec, fixed)
    given = {name: domain.plain() for name, domain in wanted.items()}
    space = {name: domain for name, domain in {**spec.space, **given}.items() if name not in fixed}
    default = {name: settings.pop(name) for name in space}
    return space, default, settings


def _first(family: str, name: str, domain: Domain, spec: ModelSpec, fixed: Mapping[str, Any]) -> Any:
    """The first trial's value of a dimension of config.

    Raises:
        ConfigError: the family has no such setting, not with such a value, or the default lies outside.
    """
    where = f"spaces.{family}.{name}"
    plain = domain.plain()
    ends = plain.values if isinstance(plain, Choice) else (plain.low, plain.high)
    for value in ends:
        try:
            whole = int(value) if isinstance(plain, Between) and plain.integer else value
            build(spec.config, {**fixed, name: whole})
        except ConfigError as error:
            raise ConfigError(f"{where} holds {value!r}, which {family} cannot have: {error}") from None
    first = getattr(build(spec.config, fixed), name) if domain.default is None else domain.default
    if not contains(plain, first):
        raise ConfigError(
            f"{where} is {_said(plain)}, and the first trial's value, {first!r}, lies outside; widen it, or give "
            f"another with {where}.default"
        )
    return first


def _said(domain: Between | Choice) -> str:
    if isinstance(domain, Choice):
        return f"one of {', '.join(repr(value) for value in domain.values)}"
    return f"between {domain.low:g} and {domain.high:g}"
