import numpy as np
import pytest

from aegis_envs.instructions import Reference, draw_phrasing
from aegis_envs.layout import CLEARANCE, draw_layout
from aegis_envs.objects import NEVER_SHOWN_KINDS, SHOWN_KINDS
from aegis_envs.scene import Layout, front_column
from aegis_envs.tasks import TASKS

SEEDS = range(60)


def _layout(seed: int, *, reference: Reference = Reference.NAME, kinds: str = "all", objects: int = 4) -> Layout:
    rng = np.random.default_rng(seed)
    return draw_layout(rng, objects=objects, discs=2, kinds=kinds, reference=reference)


def test_all_objects_of_a_scene_differ_in_colour_or_shape_and_its_discs_in_colour() -> None:
    for seed in SEEDS:
        layout = _layout(seed)
        assert len({p.kind for p in layout.objects}) == 4
        assert layout.discs[0].kind != layout.discs[1].kind


def test_an_expression_about_the_other_shape_fits_the_target_alone() -> None:
    for seed in SEEDS:
        target, *others = (p.kind for p in _layout(seed, reference=Reference.OTHER_SHAPE).objects)
        shapes = {k.shape for k in others}
        assert len(shapes) == 1 and target.shape not in shapes


@pytest.mark.parametrize("reference", [Reference.LEFTMOST, Reference.RIGHTMOST])
def test_the_extreme_object_is_the_target_by_a_clear_margin(reference: Reference) -> None:
    sign = 1 if reference is Reference.LEFTMOST else -1
    for seed in SEEDS:
        target, *others = (sign * front_column(p.x, p.y) for p in _layout(seed, reference=reference).objects)
        assert target < min(others) - 0.05


def test_things_do_not_stand_in_each_other() -> None:
    for seed in SEEDS:
        layout = _layout(seed)
        places = np.array([(p.x, p.y) for p in (*layout.objects, *layout.discs)])
        distances = np.linalg.norm(places[:, None] - places, axis=2)
        assert distances[~np.eye(len(places), dtype=bool)].min() >= CLEARANCE


def test_scenes_of_shown_targets_contain_no_never_shown_object() -> None:
    for seed in SEEDS:
        assert {p.kind for p in _layout(seed, kinds="shown").objects} <= set(SHOWN_KINDS)


def test_a_never_shown_target_is_never_shown() -> None:
    for seed in SEEDS:
        assert _layout(seed, kinds="never_shown").objects[0].kind in NEVER_SHOWN_KINDS


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_shown_and_never_shown_sentences_never_meet(task) -> None:
    assert not set(task.templates.shown) & set(task.templates.never_shown)
    rng = np.random.default_rng(0)
    layout = _layout(0)
    target, *others = (p.kind for p in layout.objects)

    def said(choice: str) -> set[str]:
        drawn = (draw_phrasing(task.templates, choice, rng) for _ in range(200))
        return {d.instruction(target, tuple(others), layout.discs[0].kind) for d in drawn}

    assert not said("shown") & said("never_shown")
    assert all(str(target) in sentence for sentence in said("shown"))


@pytest.mark.parametrize("kinds", ["shown", "never_shown", "all"])
@pytest.mark.parametrize("objects", [3, 5])
def test_one_word_is_enough_to_name_the_target_by_an_attribute(kinds: str, objects: int) -> None:
    for seed in SEEDS:
        by_colour = _layout(seed, reference=Reference.COLOUR, kinds=kinds, objects=objects)
        target, *others = (p.kind.colour for p in (*by_colour.objects, *by_colour.discs))
        assert target not in others
        by_shape = _layout(seed, reference=Reference.SHAPE, kinds=kinds, objects=objects)
        target, *others = (p.kind.shape for p in (*by_shape.objects, *by_shape.discs))
        assert target not in others


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_attributes_come_with_known_verbs_and_no_full_name(task) -> None:
    rng = np.random.default_rng(0)
    layout = _layout(0)
    target, *others = (p.kind for p in layout.objects)
    disc = layout.discs[0].kind
    drawn = [draw_phrasing(task.templates, "attributes", rng) for _ in range(200)]
    assert {d.template for d in drawn} <= set(task.templates.shown)
    said = [d.instruction(target, tuple(others), disc) for d in drawn]
    assert not any(str(target) in sentence for sentence in said)
    by_colour = sum(f"the {target.colour} object" in sentence for sentence in said)
    assert 70 < by_colour < 130 and all(
        f"the {target.shape}" in s for s in said if f"the {target.colour} object" not in s
    )


def test_shapes_name_the_object_by_its_shape_and_nothing_else() -> None:
    templates = TASKS["lift"].templates
    rng = np.random.default_rng(0)
    layout = _layout(0)
    target, *others = (p.kind for p in layout.objects)
    drawn = [draw_phrasing(templates, "shapes", rng) for _ in range(20)]
    assert {d.template for d in drawn} <= set(templates.shown)
    for sentence in (d.instruction(target, tuple(others), layout.discs[0].kind) for d in drawn):
        assert f"the {target.shape}" in sentence and target.colour not in sentence


def test_questions_name_what_is_to_be_touched_and_are_no_instructions() -> None:
    templates = TASKS["touch"].templates
    rng = np.random.default_rng(0)
    layout = _layout(0)
    target, *others = (p.kind for p in layout.objects)
    asked = {draw_phrasing(templates, "questions", rng).instruction(target, tuple(others), None) for _ in range(50)}
    assert len(asked) == len(templates.questions)
    assert all(question.endswith("?") and str(target) in question for question in asked)


def test_the_same_seed_draws_the_same_scene() -> None:
    assert _layout(7) == _layout(7) != _layout(8)
