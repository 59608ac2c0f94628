"""Pictures of scenes: reproducible, and truthful about what they show and where."""

import numpy as np
import pytest

from aegis_backbones.questions import FAMILIES
from aegis_backbones.renderer import SceneRenderer, draw_scene
from aegis_backbones.scene_store import as_arrays
from aegis_backbones.scenes import sample_scene
from aegis_backbones.source import nano_scenes
from aegis_envs.objects import COLOURS


@pytest.fixture(scope="module")
def renderer():
    with SceneRenderer() as renderer:
        yield renderer


def test_a_scene_is_the_same_whenever_it_is_drawn(renderer):
    first = draw_scene(renderer, split="train", seed=3, index=5)
    for other in range(4):  # what the pool of geoms showed in between must leave no trace
        draw_scene(renderer, split="validation", seed=9, index=other)
    with SceneRenderer() as fresh:
        for again in (renderer, fresh):
            picture = draw_scene(again, split="train", seed=3, index=5)
            assert np.array_equal(picture.image, first.image) and picture.seen == first.seen


def test_splits_seeds_and_indices_all_show_other_scenes(renderer):
    keys = [("train", 0, 0), ("validation", 0, 0), ("train", 1, 0), ("train", 0, 1)]
    images = [draw_scene(renderer, split=s, seed=k, index=i).image for s, k, i in keys]
    assert len({image.tobytes() for image in images}) == len(keys)


def test_an_unknown_split_is_refused_with_the_list_of_splits(renderer):
    with pytest.raises(ValueError, match="train, validation"):
        draw_scene(renderer, split="test", seed=0, index=0)


def test_every_thing_that_is_named_is_seen_in_its_colour_at_its_place(renderer):
    """Around a thing's centre most pixels have its hue, whatever the light: the labels fit the pixels."""
    hits, things = 0, 0
    for index in range(60):
        picture = draw_scene(renderer, split="train", seed=1, index=index)
        for seen in picture.seen:
            row, column = (min(95, max(0, round(x * 96))) for x in (seen.v, seen.u))
            patch = picture.image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].reshape(-1, 3)
            hits += _nearest_colour(np.median(patch, axis=0)) == seen.colour
            things += 1
    # A neighbour may cover a centre, and specular light may bleach one: nineteen of twenty is what labels need.
    assert hits / things > 0.95, f"{hits} of {things}"


def _nearest_colour(rgb: np.ndarray) -> str:
    """The name whose direction in RGB, after removing grey, is nearest."""

    def chroma(x: np.ndarray) -> np.ndarray:
        x = x - x.min()
        return x / max(float(np.linalg.norm(x)), 1e-9)

    return max(COLOURS, key=lambda name: float(chroma(rgb) @ chroma(np.array(COLOURS[name]))))


def test_a_point_on_the_table_projects_back_to_the_pixel_it_was_seen_at():
    camera = sample_scene(np.random.default_rng(0)).camera
    point = camera.on_table(0.3, 0.7)
    assert point is not None and abs(point[2]) < 1e-12
    uv, depth = camera.project(point[None])
    assert depth[0] > 0 and np.allclose(uv[0], [0.3, 0.7], atol=1e-12)  # rounding of a few float64 products


def test_a_mirrored_scene_has_mirrored_pixels_and_places(renderer):
    pictures = [draw_scene(renderer, split="train", seed=2, index=i) for i in range(2)]
    scenes = as_arrays(pictures, width=5)
    mirrored = scenes.take(np.array([0, 1]), mirrored=np.array([True, False]))
    assert np.array_equal(mirrored.images[0], scenes.images[0][:, ::-1])
    assert np.array_equal(mirrored.images[1], scenes.images[1])
    for (c1, s1, u1, v1), (c2, s2, u2, v2) in zip(scenes.objects(0), mirrored.objects(0), strict=True):
        assert (c1, s1, v1) == (c2, s2, v2) and u1 + u2 == pytest.approx(1.0, abs=1e-6)  # float32 places


def test_the_source_takes_turns_between_families_and_repeats_itself():
    samples = nano_scenes(count=14, seed=4, split="validation")
    assert [s.family for s in samples] == list(FAMILIES) * 2
    again = nano_scenes(count=14, seed=4, split="validation")
    for a, b in zip(samples, again, strict=True):
        assert (a.question, a.answers) == (b.question, b.answers)
        assert a.images[0].tobytes() == b.images[0].tobytes() and a.images[0].size == (96, 96)
