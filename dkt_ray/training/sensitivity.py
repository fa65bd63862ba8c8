"""What the settings of a sweep's trials did to their scores: which of them varied, and how much each one mattered.

The importance is that of a functional ANOVA over a random forest (Hutter, Hoos and Leyton-Brown 2014, An efficient
approach for assessing hyperparameter importance), as Optuna computes it. It is told of what was tried: a setting that
matters outside the tried values, or that hardly varied, comes out small.

Legend: N trials.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

LEAST: Final = 8  # trials from which on an importance is more than chance

Settings = Mapping[str, Any]


def varied(settings: Sequence[Settings]) -> list[str]:
    """Names of the settings that all trials have and that are not the same in all, in the order of the first trial.

    >>> varied([{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4}])
    ['b']
    """
    first = settings[0] if settings else {}
    shared = [name for name in first if all(name in each for each in settings)]
    return [name for name in shared if any(each[name] != first[name] for each in settings)]


def is_number(value: Any) -> bool:
    """Whether a setting's value has a place on a scale; a truth value has not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def importance(
    settings: Sequence[Settings], auc: Sequence[float], log: Collection[str] = (), seed: int = 0
) -> dict[str, float]:
    """Share of each varied setting in the variance of the AUROC, the largest first; empty where it cannot be told.

    Args:
        settings: [N] of trials that have an AUROC.
        auc: [N].
        log: settings that are searched on a logarithmic scale.
        seed: of the forest.
    """
    names = varied(settings)
    if len(settings) < LEAST or not names or len(set(auc)) == 1:
        return {}
    columns = {name: [each[name] for each in settings] for name in names}
    domains = {name: _domain(values, name in log) for name, values in columns.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for each, value in zip(settings, auc, strict=True):
        params = {name: _value(each[name], domains[name]) for name in names}
        study.add_trial(create_trial(params=params, distributions=domains, value=value))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _domain(values: Sequence[Any], log: bool) -> BaseDistribution:
    """The range that was tried."""
    if all(map(is_number, values)):
        return FloatDistribution(float(min(values)), float(max(values)), log=log and min(values) > 0)
    return CategoricalDistribution(sorted({json.dumps(value) for value in values}))


def _value(value: Any, domain: BaseDistribution) -> Any:
    return json.dumps(value) if isinstance(domain, CategoricalDistribution) else float(value)
