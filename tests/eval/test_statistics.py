"""Intervals and paired comparisons against published values and limiting cases."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_eval.statistics import (
    compare_paired,
    mcnemar_exact,
    newcombe_paired_interval,
    rate,
    wilson_interval,
)


# Newcombe, Statistics in Medicine 17 (1998), p. 857, table I, method 3; printed to four digits.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_gives_the_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_interval_contains_the_observed_rate_and_stays_in_the_unit_interval(count):
    k, n = count
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1


@given(counts)
def test_failures_have_the_mirrored_interval_of_successes(count):
    k, n = count
    low, high = wilson_interval(k, n)
    mirrored = wilson_interval(n - k, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_nothing_tried_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert "rate" not in rate(0, 0).to_dict()
    json.dumps(rate(0, 0).to_dict(), allow_nan=False)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="5 of 4"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 4, confidence=95)


# Newcombe, Statistics in Medicine 17 (1998), p. 2635, table II, method 10.
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((36, 14, 0, 0), 0.1528, 0.4167)],
)
def test_paired_interval_gives_the_published_values(table, low, high):
    assert newcombe_paired_interval(*table) == pytest.approx((low, high), abs=5e-5)


tables = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda t: sum(t) > 0)


@given(tables)
def test_swapping_the_arms_mirrors_the_paired_interval(table):
    a, b, c, d = table
    low, high = newcombe_paired_interval(a, b, c, d)
    assert newcombe_paired_interval(a, c, b, d) == pytest.approx((-high, -low), abs=1e-12)
    assert -1 <= low <= (b - c) / sum(table) <= high <= 1


def test_mcnemar_of_one_against_nine_is_eleven_in_512():
    # 2 * (C(10, 0) + C(10, 1)) / 2^10, by hand.
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1) == 22 / 1024


def test_mcnemar_ignores_pairs_that_agree():
    assert mcnemar_exact(0, 0) == 1.0
    few = compare_paired([True, False], [False, True])
    many = compare_paired([True, False] + [True] * 50, [False, True] + [True] * 50)
    assert few.p_value == many.p_value == 1.0


def test_paired_comparison_counts_who_wins_where():
    found = compare_paired([True, True, True, False, False], [True, False, False, True, False])
    assert (found.first_only, found.second_only, found.trials) == (2, 1, 5)
    assert found.difference == pytest.approx(0.2)


def test_arms_with_different_numbers_of_trials_are_not_compared():
    with pytest.raises(ValueError, match="same start seed"):
        compare_paired([True], [True, False])
