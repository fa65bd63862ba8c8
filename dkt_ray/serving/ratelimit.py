"""How fast the holder of a key may ask: a token bucket for each name in each replica, with its part of the rate.

A request takes one token before its body is read; what it turns out to be beyond that (further students of a batch) is
taken afterwards, so that a bucket may go below zero and the next request waits for it: over time the rate is kept.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, NamedTuple

from dkt_ray.serving.keys import Holder


class Share(NamedTuple):
    """What one replica allows one holder."""

    rate: float  # requests per second
    burst: float  # requests at once

    @classmethod
    def of(cls, holder: Holder, replicas: int) -> Share:
        """A holder's limits, divided among so many replicas; one request at a time is always possible."""
        return cls(holder.rate / replicas, max(1.0, holder.burst / replicas))


@dataclass
class Bucket:
    """What is left of a share."""

    tokens: float
    at: float  # seconds, of a clock that only goes forward

    def take(self, share: Share, now: float) -> float:
        """Take one token, if there is one.

        Returns:
            How many seconds to wait until there is one; 0: it was taken.
        """
        self.tokens = min(share.burst, self.tokens + share.rate * (now - self.at))
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / share.rate
        self.tokens -= 1
        return 0.0

    def headers(self, share: Share) -> dict[str, str]:
        """`RateLimit` and `RateLimit-Policy`, as draft-ietf-httpapi-ratelimit-headers-10 has them."""
        full_s = math.ceil((share.burst - self.tokens) / share.rate)
        return {
            "ratelimit-policy": f'"key";q={math.floor(share.burst)};w={math.ceil(share.burst / share.rate)}',
            "ratelimit": f'"key";r={max(0, math.floor(self.tokens))};t={full_s}',
        }


BUCKET: Final[ContextVar[Bucket | None]] = ContextVar("BUCKET", default=None)  # of who sent the request at hand


def charge(requests: int) -> None:
    """Let the request at hand count as so many more."""
    bucket = BUCKET.get()
    if bucket is not None:
        bucket.tokens -= requests
