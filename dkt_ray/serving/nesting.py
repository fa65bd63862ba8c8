"""How deep a JSON text is nested, without parsing it: parsers follow nesting by recursion."""

from __future__ import annotations

from typing import Final

import numpy as np

STRUCTURE: Final = b'"[]{}'
OTHERS: Final = bytes(set(range(256)) - set(STRUCTURE))
STEPS: Final = np.zeros(256, np.int8)
STEPS[list(b"[{")], STEPS[list(b"]}")] = 1, -1


def depth(text: bytes) -> int:
    """The most arrays and objects that are open at a time; exact up to the first place where the text is not JSON.

    What stands in strings does not count.
    """
    if text.count(b"\\"):  # an escape stands in a string only: first pairs of backslashes, then escaped quotes
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(text.translate(None, OTHERS), np.uint8)
    outside = 1 - (np.cumsum(marks == ord('"'), dtype=np.uint8) & 1)  # of strings; a count of quotes may wrap around
    return int(np.cumsum(STEPS[marks] * outside, dtype=np.int32).max(initial=0))
