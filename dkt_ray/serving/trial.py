"""(Ray) Try a challenger out beside the champion: shadow, canary in steps, and a watch after the switch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from pydantic import Field, field_validator
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from dkt_ray.config import Config
from dkt_ray.errors import RolloutError
from dkt_ray.serving import service
from dkt_ray.serving.intent import Intents
from dkt_ray.serving.traffic import Findings, Limits, Traffic, reason_to_abort, silence

logger = logging.getLogger(__name__)

POLL_S: Final = 0.5


class TrialConfig(Config):
    """How a challenger is tried out before it replaces the champion; by default it is not."""

    shadow_requests: int = Field(default=0, ge=0)
    """Shadow: so many requests are answered by both, the champion's answers returned; 0: no shadow."""
    shares: tuple[float, ...] = ()
    """Canary: shares of the students whom the challenger answers, one step after another, e.g. [0.05, 0.25, 1]; they
    are dealt by a hash of their id, and requests without one go to the champion. Unset: no canary."""
    step_requests: int = Field(default=100, ge=1)
    """A step of the canary ends when the challenger has ended so many requests, those of `compared` included ..."""
    step_s: float = Field(default=60.0, gt=0)
    """... and any step or shadow after this time, with whatever has come; a challenger that left most of it without an
    answer is refused."""
    compared: float = Field(default=0.2, ge=0, le=1)
    """Share of a canary's requests that the other one answers too, unseen, to measure the disagreement."""
    watch_s: float = Field(default=5.0, ge=0)
    """How long the new version is watched before the alias moves; 0: not at all."""
    limits: Limits = Limits()

    @field_validator("shares")
    @classmethod
    def _rising(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share <= 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise ValueError(f"shares are {shares}; expected rising numbers above 0 and at most 1")
        return shares

    @property
    def needs_both(self) -> bool:
        """Whether both bundles are loaded at one time."""
        return bool(self.shadow_requests or self.shares)


class Trial:
    """The steps of one trial; each raises when a limit is crossed or somebody asks to stop."""

    def __init__(self, config: TrialConfig, intents: Intents) -> None:
        self._config, self._intents = config, intents
        self._handle = service.handle()

    def shadow(self) -> dict[str, Any]:
        """Both answer, the champion's answers are returned.

        Raises:
            RolloutError: a limit is crossed, or somebody asked to stop.
        """
        wanted = self._config.shadow_requests
        return self._step("shadow", Traffic(compared=1.0), lambda found: found.compared >= wanted)

    def canary(self, share: float) -> dict[str, Any]:
        """The challenger answers a share of the students.

        Raises:
            RolloutError: a limit is crossed, or somebody asked to stop.
        """
        traffic, wanted = Traffic(share=share, compared=self._config.compared), self._config.step_requests
        return self._step(f"canary at {share:.0%}", traffic, lambda found: found.challenger.ended >= wanted)

    def end(self) -> None:
        """The champion answers everybody."""
        direct(self._handle, Traffic())

    def _step(self, name: str, traffic: Traffic, enough: Callable[[Findings], bool]) -> dict[str, Any]:
        ends = time.monotonic() + self._config.step_s
        while True:
            found = direct(self._handle, traffic)
            _judge(name, found, self._config.limits)
            self._intents.check()
            if enough(found):
                return found.figures()
            if time.monotonic() > ends:
                return _at_the_end(name, found, self._config.limits)
            time.sleep(POLL_S)


def watch(before: Findings, config: TrialConfig, intents: Intents) -> dict[str, Any]:
    """Look at the new version for a while, beside what the old one did.

    Args:
        before: of the version that served until now, as its champion.

    Raises:
        RolloutError: a limit is crossed, or somebody asked to stop.
    """
    ends, handle = time.monotonic() + config.watch_s, service.handle()
    while True:
        found = Findings(before.champion, direct(handle, Traffic()).champion)
        _judge("watch", found, config.limits)
        intents.check()
        if time.monotonic() > ends:
            return _at_the_end("watch", found, config.limits)
        time.sleep(POLL_S)


def direct(handle: DeploymentHandle[Any], traffic: Traffic) -> Findings:
    """Tell every replica how to deal requests; returns what they have found since that changed.

    Raises:
        RolloutError: a replica is gone: what it found is lost, and it may have crashed for a reason.
    """
    try:
        answers: list[Findings] = handle.broadcast("direct", traffic).results(timeout_s=service.REQUEST_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise RolloutError(f"a replica does not answer: {error}") from error
    return sum(answers, Findings())


def _judge(name: str, found: Findings, limits: Limits, reason: Callable[..., str | None] = reason_to_abort) -> None:
    if told := reason(found, limits):
        raise RolloutError(f"{name}: {told}")


def _at_the_end(name: str, found: Findings, limits: Limits) -> dict[str, Any]:
    """Figures of a stage whose time is over; a warning where they are too few to conclude anything."""
    _judge(name, found, limits, silence)
    if found.challenger.ended < limits.at_least:
        told = f"{found.challenger.ended} answers, nothing is concluded from less than {limits.at_least}"
        logger.warning("rollout: %s: %s", name, told)
    return found.figures()
