"""The verdict on a choice: does it score students who took no part in it better than the default, beyond chance?"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from dkt_ray import metrics
from dkt_ray.metrics import Estimate
from dkt_ray.training.protocol import Scored, align_members

Verdict = Literal["gain", "no gain"]

CONTENDERS: Final = ("default", "automl")


def judge(default: Scored, chosen: Scored, samples: int, seed: int) -> dict[str, Any]:
    """Compare two ways of scoring the same rows.

    Returns:
        verdict, difference (of the AUROC, chosen minus default), auc (of each, with its interval), users, rows.

    Raises:
        ConfigError: the rows are not the same.
    """
    base, columns = align_members({"default": default, "automl": chosen})
    kept = base.headline
    y, user, p = base.correct[kept], base.user.codes[kept], columns[kept]
    difference = metrics.paired_difference(y, p[:, 1], p[:, 0], user, samples, seed)
    auc = {}
    for column, name in enumerate(CONTENDERS):
        low, high = metrics.bootstrap_auc(y, p[:, column], user, samples, seed) or (None, None)
        auc[name] = {"value": metrics.auc(y, p[:, column]), "low": low, "high": high}
    found = {"difference": difference, "auc": auc, "users": len(np.unique(user)), "rows": int(kept.sum())}
    return {"verdict": verdict(difference), **found}


def verdict(difference: Estimate) -> Verdict:
    """Gain, where the whole interval of the difference is above zero.

    >>> verdict({"value": 0.004, "low": -0.001, "high": 0.009})
    'no gain'
    """
    return "gain" if difference["low"] is not None and difference["low"] > 0 else "no gain"
