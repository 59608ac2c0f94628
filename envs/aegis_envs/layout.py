"""Draws what stands on the table, so that an instruction fits exactly one object.

Objects stand in the part of the table that the arm reaches from above, at least `CLEARANCE` apart. The target is always
slot 0 of the objects, and the named disc slot 0 of the discs. With targets of all kinds or of shown ones nothing in an
image tells slots apart. A never-shown target stands out from distractors, most of which are shown ones, and where its
colour or shape alone names it, it shares that with none: `benchmarks/referring.py` counts how far looks alone go.
"""

import numpy as np

from aegis_envs.instructions import Reference
from aegis_envs.objects import (
    ALL_KINDS,
    COLOURS,
    NEVER_SHOWN_KINDS,
    SHAPES,
    SHOWN_KINDS,
    TARGET_SHAPE,
    ObjectKind,
)
from aegis_envs.scene import Layout, Placement, front_column

KINDS = {"shown": SHOWN_KINDS, "never_shown": NEVER_SHOWN_KINDS, "all": ALL_KINDS}

X_RANGE = (0.16, 0.27)  # metres
Y_RANGE = (-0.11, 0.11)
PAN_AXIS_X = 0.0388  # metres: where the arm turns about
REACH = (0.125, 0.235)  # metres from the pan axis
CLEARANCE = 0.062  # metres between the centres of two things
COLUMN_MARGIN = 0.06  # of the image's width, by which the leftmost object is left of the next
MAX_OBJECTS = 5
_ATTEMPTS = 2000


def draw_layout(rng: np.random.Generator, *, objects: int, discs: int, kinds: str, reference: Reference) -> Layout:
    """Draws a scene of `objects` objects and `discs` discs in which `reference` fits object 0 alone.

    Args:
        rng: Where the randomness comes from.
        objects: How many objects, distractors included.
        discs: How many discs, of different colours.
        kinds: Colour-shape combinations of the target: `"shown"`, `"never_shown"` or `"all"`. Scenes of shown targets
            hold shown distractors only, so that a never-shown combination is in no demonstration's image either.
        reference: The referring expression that has to fit.
    """
    object_kinds = _draw_kinds(rng, objects, kinds, reference)
    # "the red object" must not be a disc either
    taken = object_kinds[0].colour if reference is Reference.COLOUR else None
    colours = [c for c in rng.permutation(list(COLOURS)) if c != taken][:discs]
    disc_kinds = [ObjectKind(str(c), TARGET_SHAPE) for c in colours]
    places = _draw_places(rng, objects + discs)
    while not _fits(reference, places[:objects]):
        places = _draw_places(rng, objects + discs)
    object_places, disc_places = places[:objects], places[objects:]
    yaws = rng.uniform(-np.pi / 4, np.pi / 4, objects)
    return Layout(
        objects=tuple(
            Placement(k, float(x), float(y), float(yaw))
            for k, (x, y), yaw in zip(object_kinds, object_places, yaws, strict=True)
        ),
        discs=tuple(Placement(k, float(x), float(y)) for k, (x, y) in zip(disc_kinds, disc_places, strict=True)),
    )


def _draw_kinds(rng: np.random.Generator, objects: int, kinds: str, reference: Reference) -> list[ObjectKind]:
    pool = KINDS[kinds]
    target = pool[rng.integers(len(pool))]
    others = [k for k in (SHOWN_KINDS if kinds == "shown" else ALL_KINDS) if k != target]
    if reference is Reference.OTHER_SHAPE:
        shapes = [s for s in SHAPES if s != target.shape]
        shape = shapes[rng.integers(len(shapes))]
        others = [k for k in others if k.shape == shape]
    elif reference is Reference.SHAPE:
        others = [k for k in others if k.shape != target.shape]
    elif reference is Reference.COLOUR:
        others = [k for k in others if k.colour != target.colour]
    chosen = rng.permutation(len(others))[: objects - 1]
    return [target, *(others[i] for i in chosen)]


def _fits(reference: Reference, places: np.ndarray) -> bool:
    """Whether an expression about places fits the first of `places` (N, 2), and clearly so."""
    if reference not in (Reference.LEFTMOST, Reference.RIGHTMOST) or len(places) == 1:
        return True
    columns = np.array([front_column(x, y) for x, y in places])
    margins = columns[1:] - columns[0] if reference is Reference.LEFTMOST else columns[0] - columns[1:]
    return bool(margins.min() >= COLUMN_MARGIN)


def _draw_places(rng: np.random.Generator, count: int) -> np.ndarray:
    """Places (count, 2) in reach and apart from each other, by rejection."""
    for _ in range(_ATTEMPTS):
        places: list[np.ndarray] = []
        for _ in range(60):
            place = rng.uniform((X_RANGE[0], Y_RANGE[0]), (X_RANGE[1], Y_RANGE[1]))
            in_reach = REACH[0] <= np.hypot(place[0] - PAN_AXIS_X, place[1]) <= REACH[1]
            if in_reach and all(np.linalg.norm(place - p) >= CLEARANCE for p in places):
                places.append(place)
            if len(places) == count:
                return np.array(places)
    raise RuntimeError(f"Found no room for {count} things on the table.")
