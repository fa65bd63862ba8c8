"""The table of contents of the data report; to add a section, write its maker and add its line."""

from __future__ import annotations

from typing import Final

from dkt_ray.analysis import behaviour, overview, relations
from dkt_ray.analysis.section import Maker

SECTIONS: Final[dict[str, Maker]] = {
    "distributions": overview.summary,
    "structure": overview.structure,
    "accuracy": behaviour.rates,
    "months": behaviour.months,
    "features": overview.correlation,
    "concepts": relations.concepts,
    "exposure": behaviour.exposures,
    "learning": behaviour.learning,
    "elapsed": behaviour.pace,
    "order": behaviour.order,
    "drift": relations.shift,
    "map": relations.map_of_histories,
}
