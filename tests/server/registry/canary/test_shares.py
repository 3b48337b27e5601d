"""Shares of splits: drawn as often as stated, equal on every server, and growing monotonely."""

from __future__ import annotations

import math

import pytest
from bmt_server.errors import BadRequest
from bmt_server.registry.canary.split import (
    POINTS,
    Split,
    Target,
    drawn,
    points_of,
    read_splits,
)
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(max_size=20)
SHARES = st.integers(0, POINTS)
DIGESTS = [c * 64 for c in "abc"]


@given(st.lists(TEXTS, min_size=1, max_size=6), SHARES, SHARES)
def test_a_larger_share_draws_all_that_a_smaller_one_draws(parts, one, other):
    small, large = sorted((one, other))
    assert drawn(large, *parts) >= drawn(small, *parts)
    assert not drawn(0, *parts)
    assert drawn(POINTS, *parts)


def test_the_borders_of_parts_count():
    """A tenant `a` with the name `1b` and a tenant `a1` with the name `b` are two."""
    assert {i for i in range(2000) if drawn(1000, f"a{i}", "b")} != {
        i for i in range(2000) if drawn(1000, "a", f"{i}b")
    }


@pytest.mark.parametrize("points", [1, 500, 2500, 5000, 9500, 9999])
@pytest.mark.parametrize("who", ["user-{}", "{}", "{}@example.com", "\u00fc{}"])
def test_as_many_are_drawn_as_the_share_says(points, who):
    """Within 4.5 standard deviations of the binomial distribution, for whatever users look like."""
    count = 20_000
    found = sum(drawn(points, "default", "math", "prod", who.format(i)) for i in range(count))
    share = points / POINTS
    assert abs(found - count * share) <= 4.5 * math.sqrt(count * share * (1 - share)) + 1


def test_tenants_names_and_canaries_draw_independently():
    def of(*parts):
        return {i for i in range(20_000) if drawn(1000, *parts, str(i))}

    first = of("default", "math", "prod", DIGESTS[0])
    for parts in (
        ("other", "math", "prod", DIGESTS[0]),
        ("default", "prose", "prod", DIGESTS[0]),
        ("default", "math", "eu", DIGESTS[0]),
        ("default", "math", "prod", DIGESTS[1]),
    ):
        both = len(first & of(*parts))
        assert 130 <= both <= 270, parts  # 200, and 5 standard deviations


@given(st.integers(0, POINTS))
def test_percent_and_points_are_the_same(points):
    assert points_of(points / 100, "canary.percent") == points
    assert Target("a", points).percent == points / 100


@pytest.mark.parametrize("percent", [-1.0, -0.01, 100.01, 1e300, 0.001, 5.005, 33.333])
def test_a_share_that_cannot_be_kept_is_refused(percent):
    with pytest.raises(BadRequest, match="at most two decimals"):
        points_of(percent, "canary.percent")


TARGETS = st.none() | st.builds(Target, st.sampled_from(DIGESTS), SHARES)


@given(TARGETS, TARGETS)
def test_what_is_written_is_read(canary, shadow):
    split = Split(DIGESTS[0], canary, shadow)
    head = {"alias:prod": DIGESTS[0], "split:prod": split.text, "rev": "3"}
    if canary is not None:
        head["canary:prod"] = canary.digest
    if shadow is not None:
        head["shadow:prod"] = shadow.digest
    assert read_splits(head) == {"prod": split}
    # A later build may add to it.
    assert read_splits({**head, "split:prod": split.text + "|more|0.5"}) == {"prod": split}


@given(st.text(max_size=30), st.text(max_size=80))
def test_a_split_that_cannot_be_read_is_no_canary(text, digest):
    """Whatever is stored, a name stays readable, and a share is one of 0 to 100 %."""
    found = read_splits({"split:prod": text, "canary:prod": digest, "shadow:prod": digest})
    for target in (found["prod"].canary, found["prod"].shadow):
        assert target is None or 0 <= target.points <= POINTS
