"""Answers that are right by construction, on scenes made by hand."""

import numpy as np
import pytest

from aegis_backbones.questions import FAMILIES, ask
from aegis_envs.objects import COLOURS

ONE_EACH = [("red", "cube", 0.2, 0.2), ("blue", "ball", 0.8, 0.75)]


def asked(objects, family, times=60):
    rng = np.random.default_rng(0)
    return [q for q in (ask(objects, rng, family) for _ in range(times)) if q is not None]


def test_colour_and_shape_name_what_is_there():
    for question in asked(ONE_EACH, "colour"):
        assert question.answers[0] == ("red" if "cube" in question.question else "blue")
    for question in asked(ONE_EACH, "shape"):
        assert question.answers[0] == ("cube" if "red" in question.question else "ball")


def test_relations_read_the_picture_from_left_to_right_and_top_to_bottom():
    for family, first, last in (("left_right", "left", "right"), ("above_below", "above", "below")):
        for question in asked(ONE_EACH, family):
            # the thing asked about is the one that is named first, except where the other is named as the reference
            about = question.question
            reference_first = about.startswith("On which side of")
            red = about.index("cube") if "cube" in about else about.index("red")
            blue = about.index("ball") if "ball" in about else about.index("blue")
            subject_is_red = (red < blue) != reference_first
            assert question.answers[0] == (first if subject_is_red else last)


def test_where_names_a_ninth_of_the_picture_and_never_a_border():
    for question in asked(ONE_EACH, "where"):
        expected = "top left" if "cube" in question.question or "red" in question.question else "bottom right"
        assert question.answers[0] == expected
    assert asked([("red", "cube", 0.34, 0.5)], "where") == []


def test_existence_says_yes_only_for_what_is_there():
    answers = {q.answers[0] for q in asked(ONE_EACH, "existence", 200)}
    assert answers == {"yes", "no"}
    for question in asked(ONE_EACH, "existence", 200):
        there = "red cube" in question.question or "blue ball" in question.question
        assert question.answers[0] == ("yes" if there else "no")


def test_counts_count():
    cubes = [("red", "cube", 0.2, 0.2), ("blue", "cube", 0.5, 0.5), ("red", "cube", 0.8, 0.8)]
    for question in asked(cubes, "count", 200):
        if " cubes" in question.question and not any(colour in question.question for colour in COLOURS):
            assert question.answers[0] == "3"
        if "red cubes" in question.question:
            assert question.answers[0] == "2"


def test_mentions_are_words_of_the_question_with_the_place_of_what_they_name():
    for family, number in (("colour", 1), ("shape", 1), ("left_right", 2), ("above_below", 2), ("where", 1)):
        for question in asked(ONE_EACH, family):
            assert len(question.mentions) == number
            for words, u, v in question.mentions:
                assert words in question.question
                assert (u, v) == ((0.2, 0.2) if "red" in words or "cube" in words else (0.8, 0.75))
    for question in asked(ONE_EACH, "existence"):
        assert len(question.mentions) == (question.answers[0] == "yes")


def test_a_question_is_about_what_it_names_or_counts():
    cubes = [("red", "cube", 0.2, 0.2), ("blue", "cube", 0.5, 0.5), ("blue", "ball", 0.8, 0.8)]
    for question in asked(cubes, "count", 200):
        assert len(question.meant) == int(question.answers[0])
        if " cubes" in question.question and "blue" not in question.question and "red" not in question.question:
            assert set(question.meant) == {(0.2, 0.2), (0.5, 0.5)}
    for family in FAMILIES:
        for question in asked(ONE_EACH, family):
            assert {(m.u, m.v) for m in question.mentions} <= set(question.meant)
            assert bool(question.meant) == (question.answers[0] not in ("no", "0"))


def test_ambiguous_things_are_not_referred_to():
    twins = [("red", "cube", 0.2, 0.2), ("red", "cube", 0.8, 0.8)]
    for family in ("colour", "shape", "left_right", "above_below", "where"):
        assert asked(twins, family) == []


def test_an_unknown_family_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=", ".join(FAMILIES[:3])):
        ask(ONE_EACH, np.random.default_rng(0), "smell")
