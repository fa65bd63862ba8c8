"""How deep a text is nested equals what a parser finds."""

import json

from hypothesis import given
from hypothesis import strategies as st

from dkt_ray.serving.nesting import depth

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text('"\\[]{}ab', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\[]{}ab', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def nesting(value):
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(nesting, value.values() if isinstance(value, dict) else value), default=0)


@given(VALUES, st.booleans())
def test_depth_is_what_a_parser_finds(value, ascii_only):
    assert depth(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")) == nesting(value)


def test_what_is_cut_off_or_no_json_counts_as_far_as_a_parser_would_go():
    for text, found in ((b"[" * 100_000, 100_000), (b'{"a":' * 500, 500), (b'[{"a": ["', 3), (b'\\"[[[', 0), (b"", 0)):
        assert depth(text) >= found
    assert depth(b'["' + b"[" * 1000 + b'"]') == 1
