"""How deep a JSON text is nested, without parsing it: parsers follow nesting by recursion."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

OTHERS: Final = bytes(set(range(256)) - set(b'"[]{}'))
ALIKE: Final = bytes.maketrans(b"{}", b"[]")
STEPS: Final = np.zeros(256, np.int8)
STEPS[list(b"[]")] = 1, -1
SHALLOW: Final = 6  # so deep may a text be that is measured by taking away what is innermost, again and again


def depth(text: bytes) -> int:
    """The most arrays and objects that are open at a time; exact up to the first place where the text is not JSON.

    What stands in strings does not count.
    """
    if text.count(b"\\"):  # an escape stands in a string only: first pairs of backslashes, then escaped quotes
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = marks = text.translate(ALIKE, OTHERS).replace(b'""', b"")  # strings that hold none of these marks
    for levels in range(SHALLOW + 1):
        if not left:
            return levels
        left = left.replace(b"[]", b"")
    return _counted(np.frombuffer(marks, np.uint8))


def _counted(marks: npt.NDArray[np.uint8]) -> int:
    outside = 1 - (np.cumsum(marks == ord('"'), dtype=np.uint8) & 1)  # of strings; a count of quotes may wrap around
    return int(np.cumsum(STEPS[marks] * outside, dtype=np.int32).max(initial=0))
