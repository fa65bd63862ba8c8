"""Pseudonyms: the same name for the same user, and nothing in it that leads back to him without the key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkt_ray.errors import ConfigError
from dkt_ray.privacy import PSEUDONYM, Privacy

KEYED, OTHER, OPEN = Privacy(b"key"), Privacy(b"other key"), Privacy()
IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(IDS, IDS)
def test_users_events_and_marks_have_names_of_their_own(one, two):
    names = [
        KEYED.user(one),
        KEYED.event(one),
        KEYED.mark(one),
        OTHER.user(one),
        KEYED.user(one, "school"),
        OPEN.mark(one),
    ]
    assert len(set(names)) == len(names)
    assert PSEUDONYM.fullmatch(KEYED.user(one))
    assert (KEYED.user(one) == KEYED.user(two)) == (one == two)
    assert (KEYED.event(one) == KEYED.event(two)) == (one == two)


@given(IDS)
def test_a_pseudonym_stays_as_it_is_in_data_and_nowhere_else(user):
    name = KEYED.user(user)
    assert KEYED.in_data(name) == KEYED.in_data(user) == name
    assert OPEN.in_data(user) == user
    assert name not in (KEYED.user(name), KEYED.user(name, "school"))  # what a request says is never a stored name


@given(IDS, IDS, IDS, IDS)
def test_no_tenant_can_name_anothers_user(one, two, user, other):
    same = (one, user) == (two, other)
    assert (KEYED.user(user, one) == KEYED.user(other, two)) == same
    assert (KEYED.event(user, one) == KEYED.event(other, two)) == same


def test_without_a_key_ids_stay_as_they_are():
    assert (OPEN.user("ann"), OPEN.event("e1")) == ("ann", "e1")
    with pytest.raises(ConfigError, match="DKT_PRIVACY_KEY"):
        OPEN.user("ann", "school")


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("DKT_PRIVACY_KEY", "key")
    assert Privacy.of_environment() == KEYED
    assert "key" not in repr(KEYED)
    monkeypatch.setenv("DKT_PRIVACY_KEY", "")
    assert Privacy.of_environment() == OPEN
