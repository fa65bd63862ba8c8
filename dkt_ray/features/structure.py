"""What an id of the competition's form says.

`A` + head(3) + mid(3) + tail(3) is a question, `A` + head + `000` + mid its test; each part is three digits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.data.history import Strings

PATTERN: Final = r"^A(?P<head>\d{3})(?P<mid>\d{3})(?P<tail>\d{3})$"


def decompose(questions: Strings) -> dict[str, Strings]:
    """The parts of question ids: head, mid, tail, mid_tail, head_tail, paper (head + mid); "" where the pattern fails.

    Args:
        questions: [V] question ids.
    """
    parts = pc.extract_regex(pa.array(questions, pa.string()), pattern=PATTERN)
    head, mid, tail = (_strings(pc.struct_field(parts, name)) for name in ("head", "mid", "tail"))
    return {
        "head": head,
        "mid": mid,
        "tail": tail,
        "mid_tail": mid + tail,
        "head_tail": head + tail,
        "paper": head + mid,
    }


def implied_test(questions: Strings) -> Strings:
    """The test that the form of a question's id implies, "" where the pattern fails."""
    parts = decompose(questions)
    return np.where(parts["head"] == "", "", "A" + parts["head"] + "000" + parts["mid"]).astype(object)


def consistent(questions: Strings, tests: Strings) -> npt.NDArray[np.bool_]:
    """Where `question[1:7] == test[1:4] + test[7:10]` (true where the pattern does not apply, or no test is named)."""
    implied = implied_test(questions)
    return (implied == "") | (tests == "") | (implied == tests)


def _strings(array: pa.Array) -> Strings:
    return pc.fill_null(array, "").to_numpy(zero_copy_only=False).astype(object)
