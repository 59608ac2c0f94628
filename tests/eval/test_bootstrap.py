"""Intervals over seeds and questions agree with closed forms, and cover in simulation."""

from math import sqrt

import numpy as np
import pytest

from aegis_eval.bootstrap import REPLICATES, Design, difference_estimate, draw, retention_estimates, success_estimate
from aegis_eval.statistics import compare_paired, wilson_interval

# Quantiles of 2,000 replicates are off by about 3 % of the interval's half-width (standard error of a 2.5 % quantile).
WIDTH_TOLERANCE = 0.08


def half_width(found):
    return (found.high - found.low) / 2


def test_with_one_seed_a_rate_has_wilsons_interval():
    marks = [i < 70 for i in range(100)]
    found = success_estimate({1000: marks}, Design.of_questions(["a"] * 100))
    assert (found.low, found.high) == wilson_interval(70, 100)
    assert (found.value, found.method) == (0.7, "Wilson")


def test_with_one_seed_a_difference_has_newcombes_interval():
    first, second = [i < 60 for i in range(100)], [i % 2 == 0 for i in range(100)]
    found, pairs = (
        difference_estimate({1: first}, {1: second}, Design.of_questions(["a"] * 100)),
        compare_paired(first, second),
    )
    assert (found.value, found.low, found.high) == (pairs.difference, pairs.low, pairs.high)


def test_seeds_that_agree_leave_the_variance_of_the_questions():
    """All seeds alike: the interval is that of one seed's questions, sqrt(p (1 - p) / n), for any number of seeds."""
    marks = [i % 10 < 7 for i in range(400)]
    found = success_estimate(dict.fromkeys(range(5), marks), Design.of_questions(["a"] * 400))
    assert half_width(found) == pytest.approx(1.96 * sqrt(0.7 * 0.3 / 400), rel=WIDTH_TOLERANCE)


def test_seeds_that_differ_add_their_own_variance():
    """Each seed all right or all wrong: only seeds vary, with the binomial variance of 12 draws."""
    outcomes = {seed: [seed % 2 == 0] * 50 for seed in range(12)}
    found = success_estimate(outcomes, Design.of_questions(["a"] * 50))
    assert found.value == 0.5
    # A binomial of 12 moves in steps of 1/12.
    assert half_width(found) == pytest.approx(1.96 * sqrt(0.25 / 12), abs=1 / 24)


def test_strata_keep_their_sizes():
    """Rates of one and zero in two strata: with sizes fixed by design, the pooled rate does not vary."""
    marks = [True] * 30 + [False] * 70
    strata = ["easy"] * 30 + ["hard"] * 70
    found = success_estimate({1: marks, 2: marks}, Design.of_questions(strata))
    assert (found.low, found.high) == pytest.approx((0.3, 0.3))


def test_what_begins_from_one_scene_is_drawn_together():
    """Three tasks that succeed in the same scenes tell as much as one: the interval of 50 scenes."""
    scene = [i % 5 < 2 for i in range(50)]
    found = success_estimate({1: scene * 3}, Design.of_episodes(list(range(50)) * 3))
    assert half_width(found) == pytest.approx(1.96 * sqrt(0.4 * 0.6 / 50), rel=WIDTH_TOLERANCE)
    assert (found.value, found.method) == (pytest.approx(0.4), "bootstrap")


def test_scenes_that_make_no_difference_leave_the_interval_of_the_episodes():
    rng = np.random.default_rng(4)
    marks = list(rng.random(600) < 0.4)
    found = success_estimate({1: marks}, Design.of_episodes(list(range(200)) * 3))
    assert half_width(found) == pytest.approx(1.96 * sqrt(0.4 * 0.6 / 600), rel=0.15)  # of 200 scenes: their own noise


def test_a_difference_that_never_varies_is_as_sure_as_its_scenes():
    scenes = Design.of_episodes([*range(30), *range(30)])
    same = difference_estimate({1: [True] * 60}, {1: [True] * 60}, scenes)
    pairs = compare_paired([True] * 30, [True] * 30)
    assert (same.value, same.low, same.high) == (0.0, pairs.low, pairs.high)


def test_a_pair_removes_what_both_share():
    rng = np.random.default_rng(0)
    hard = rng.random(300) < 0.5
    first = {seed: list(hard | (rng.random(300) < 0.1)) for seed in range(3)}
    second = {seed: list(hard) for seed in range(3)}
    paired = difference_estimate(first, second, Design.of_questions(["a"] * 300))
    alone = success_estimate(first, Design.of_questions(["a"] * 300))
    assert half_width(paired) < 0.7 * half_width(alone)
    assert paired.value == pytest.approx(alone.value - hard.mean())


def test_arms_without_a_seed_in_common_are_not_compared():
    assert difference_estimate({1: [True]}, {2: [True]}, Design.of_questions(["a"])) is None


def test_what_answers_as_before_has_kept_everything_up_to_what_so_few_questions_can_tell():
    before = [i % 5 != 0 for i in range(100)]
    kept = retention_estimates(dict.fromkeys((1, 2, 3), before), before, ["a", "b"] * 50)
    for name, right in (("a", 40), ("all", 80), ("worst", 40)):
        assert (kept[name].value, kept[name].method) == (1.0, "Wilson")
        assert (kept[name].low, kept[name].high) == wilson_interval(right, right)
    nothing = retention_estimates({1: [False] * 100}, before, ["a", "b"] * 50)["all"]
    assert (nothing.value, nothing.low, nothing.high) == (0.0, *wilson_interval(0, 80))


def test_retention_is_counted_by_family_and_the_worst_is_the_least():
    before = [True] * 200
    after = [True] * 100 + [i < 60 for i in range(100)]
    kept = retention_estimates({1: after, 2: after}, before, ["a"] * 100 + ["b"] * 100)
    assert kept["a"].value == 1.0
    assert kept["b"].value == kept["worst"].value == pytest.approx(0.6)
    assert kept["all"].value == pytest.approx(0.8)
    assert kept["worst"].by_seed == pytest.approx({1: 0.6, 2: 0.6})


def test_the_worst_is_each_seeds_own():
    before, strata = [True] * 40, ["a", "b"] * 20
    forgets = {"a": 10, "b": 4}  # of 20, by the first seed; the other forgets as much of the other family
    first = [i // 2 >= forgets[name] for i, name in enumerate(strata)]
    second = [i // 2 >= forgets["b" if name == "a" else "a"] for i, name in enumerate(strata)]
    kept = retention_estimates({1: first, 2: second}, before, strata)
    assert kept["a"].value == kept["b"].value == pytest.approx(0.65)
    assert kept["worst"].by_seed == {1: 0.5, 2: 0.5}
    assert kept["worst"].value == 0.5
    assert kept["worst"].low < 0.5 < kept["worst"].high


def test_a_family_of_which_nothing_was_known_has_no_retention():
    kept = retention_estimates({1: [True, True]}, [True, False], ["known", "unknown"])
    assert set(kept) == {"known", "all", "worst"}
    assert retention_estimates({1: [True]}, [False], ["unknown"]) == {}


def test_outcomes_without_variance_get_wilsons_interval_of_one_seed():
    found = success_estimate({1: [True] * 50, 2: [True] * 50}, Design.of_questions(["a"] * 50))
    assert (found.low, found.high) == wilson_interval(50, 50)


def test_the_same_data_give_the_same_interval():
    rng = np.random.default_rng(1)
    outcomes = {seed: list(rng.random(60) < 0.5) for seed in range(3)}
    first = success_estimate(outcomes, Design.of_questions(["a"] * 60))
    draw.cache_clear()
    assert success_estimate(outcomes, Design.of_questions(["a"] * 60)) == first


def test_draws_redraw_as_many_as_there_are():
    draws = draw(3, Design.of_questions(("a", "b", "b")))
    assert draws.seeds.shape == (REPLICATES, 3) and draws.items.shape == (REPLICATES, 3)
    assert set(draws.seeds.sum(axis=1)) == {3}
    assert set(draws.items[:, 0]) == {1}  # the only one of its stratum


def test_seeds_that_met_other_questions_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        success_estimate({1: [True], 2: [True, False]}, Design.of_questions(["a"]))


def test_the_interval_covers_the_truth_with_ten_seeds():
    """200 made-up studies: seeds and questions each shift the chance of a right answer; nominal coverage is 95 %."""
    rng = np.random.default_rng(2)
    studies, covered = 200, 0
    for _ in range(studies):
        by_seed, by_item = 0.10 * rng.standard_normal(10), 0.15 * rng.standard_normal(60)
        chance = np.clip(0.5 + by_seed[:, None] + by_item[None, :], 0, 1)
        right = rng.random(chance.shape) < chance
        found = success_estimate({s: list(row) for s, row in enumerate(right)}, Design.of_questions(["a"] * 60))
        covered += found.low <= 0.5 <= found.high
    # Three standard errors of a coverage of 95 % in 200 studies are 4.6 points.
    assert covered / studies > 0.95 - 0.046


@pytest.mark.parametrize(("seeds", "least", "most"), [(2, 0.45, 0.68), (3, 0.68, 0.85)])
def test_where_seeds_are_all_that_varies_few_of_them_cover_as_little_as_the_note_says(seeds, least, most):
    rng = np.random.default_rng(3)
    studies, covered = 200, 0
    for _ in range(studies):
        chance = np.clip(0.5 + 0.15 * rng.standard_normal(seeds), 0, 1)
        right = np.arange(1400)[None, :] < 1400 * chance[:, None]  # each seed has its rate exactly
        found = success_estimate({seed: list(row) for seed, row in enumerate(right)}, Design.of_questions(["a"] * 1400))
        covered += found.low <= 0.5 <= found.high
    assert least < covered / studies < most
