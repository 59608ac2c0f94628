"""Questions about a picture whose contents are known, and their answers.

Seven families. A question is asked only where the truth is unambiguous: things are referred to by words that fit
exactly one of them, and positions are compared only beyond a margin. Anything with a colour, a shape and a place
(u, v) in the picture can be asked about, rendered scenes and frames of a robot environment alike.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from aegis_envs.objects import COLOURS, SHAPES, TARGET_SHAPE

FAMILIES: tuple[str, ...] = (
    "colour",
    "shape",
    "count",
    "existence",
    "left_right",
    "above_below",
    "where",
)
MARGIN_BETWEEN = 0.09  # of the picture's side: how far apart two things are that are compared
MARGIN_OF_REGION = 0.03  # of the picture's side: how far inside its ninth of the picture a thing is
COLUMNS = ("left", "center", "right")
ROWS = ("top", "middle", "bottom")
ALL_SHAPES: tuple[str, ...] = (*SHAPES, TARGET_SHAPE)


class Mention(NamedTuple):
    """Words of a question that stand for one thing, and where that thing is in the picture."""

    words: str
    u: float
    v: float


class Question(NamedTuple):
    """A question and its accepted answers, the canonical one first; `meant` is the place (u, v) of every thing that
    the question is about: those that are counted, the one that is named."""

    question: str
    answers: tuple[str, ...]
    family: str
    mentions: tuple[Mention, ...] = ()
    meant: tuple[tuple[float, float], ...] = ()


Objects = Sequence[tuple[str, str, float, float]]  # (colour, shape, u, v), u to the right and v downwards in [0, 1]


def ask(objects: Objects, rng: np.random.Generator, family: str) -> Question | None:
    """A question of `family` about a picture that shows `objects`, and nothing else that has one of the names.

    Args:
        objects: (colour, shape, u, v) of each thing that can be seen.
        rng: Chooses the things that are asked about and the phrasing.
        family: One of `FAMILIES`.

    Returns:
        The question, or None if this picture admits none of that family without ambiguity.

    Raises:
        ValueError: If the family is unknown.
    """
    if family not in _ASKERS:
        raise ValueError(f"The families of questions are {', '.join(FAMILIES)}; {family!r} is none of them.")
    found = _ASKERS[family](objects, rng)
    if found is None:
        return None
    return Question(found.text, found.answers, family, found.mentions, found.meant)


class _Found(NamedTuple):
    """What an asker has found."""

    text: str
    answers: tuple[str, ...]
    mentions: tuple[Mention, ...]
    meant: tuple[tuple[float, float], ...]


Asked = _Found | None


def _about(text: str, answers: tuple[str, ...], *mentions: Mention) -> _Found:
    return _Found(text, answers, mentions, tuple((m.u, m.v) for m in mentions))


def _colour(objects: Objects, rng: np.random.Generator) -> Asked:
    candidates = [o for o in objects if sum(p[1] == o[1] for p in objects) == 1]
    if not candidates:
        return None
    colour, shape, u, v = _choose(rng, candidates)
    return _about(_phrase(rng, PHRASINGS["colour"], shape=shape), (colour,), Mention(shape, u, v))


def _shape(objects: Objects, rng: np.random.Generator) -> Asked:
    candidates = [o for o in objects if sum(p[0] == o[0] for p in objects) == 1]
    if not candidates:
        return None
    colour, shape, u, v = _choose(rng, candidates)
    return _about(_phrase(rng, PHRASINGS["shape"], colour=colour), (shape,), Mention(colour, u, v))


def _count(objects: Objects, rng: np.random.Generator) -> Asked:
    """Each number that the picture offers is as likely as any other: "0" and "1" must not be a good guess."""
    by_number: dict[int, list[tuple[str, tuple[tuple[float, float], ...]]]] = {}
    for colour, shape in product((*COLOURS, None), (*ALL_SHAPES, None)):
        counted = tuple((u, v) for c, s, u, v in objects if colour in (c, None) and shape in (s, None))
        if colour and shape and len(counted) < 2:
            continue  # that is what "existence" asks
        words = [*([colour] if colour else []), f"{shape}s" if shape else "objects"]
        by_number.setdefault(len(counted), []).append((" ".join(words), counted))
    number = _choose(rng, sorted(by_number))
    things, counted = _choose(rng, by_number[number])
    return _Found(_phrase(rng, PHRASINGS["count"], things=things), (str(number),), (), counted)


def _existence(objects: Objects, rng: np.random.Generator) -> Asked:
    """Half of the answers are yes; most of the things that are not there share a word with one that is."""
    kinds = {(o[0], o[1]) for o in objects}
    if rng.random() < 0.5 and kinds:
        colour, shape = _choose(rng, sorted(kinds))
        thing = f"{colour} {shape}"
        places = tuple((u, v) for c, s, u, v in objects if (c, s) == (colour, shape))
        mentions = (Mention(thing, *places[0]),) if len(places) == 1 else ()
        return _Found(_phrase(rng, PHRASINGS["existence"], thing=thing), ("yes",), mentions, places)
    absent = [k for k in product(COLOURS, ALL_SHAPES) if k not in kinds]
    near = [k for k in absent if any((k[0] == c) != (k[1] == s) for c, s in kinds)]
    colour, shape = _choose(rng, near if near and rng.random() < 0.7 else absent)
    return _about(_phrase(rng, PHRASINGS["existence"], thing=f"{colour} {shape}"), ("no",))


def _left_right(objects: Objects, rng: np.random.Generator) -> Asked:
    return _relation(objects, rng, axis=2, family="left_right", smaller="left", larger="right")


def _above_below(objects: Objects, rng: np.random.Generator) -> Asked:
    return _relation(objects, rng, axis=3, family="above_below", smaller="above", larger="below")


def _relation(
    objects: Objects, rng: np.random.Generator, *, axis: int, family: str, smaller: str, larger: str
) -> Asked:
    nameable = [(o, names) for o in objects if (names := list(_unique_names(o, objects)))]
    pairs = [
        (a, b) for a, b in product(nameable, nameable) if abs(float(a[0][axis]) - float(b[0][axis])) > MARGIN_BETWEEN
    ]
    if not pairs:
        return None
    (first, first_names), (second, second_names) = _choose(rng, pairs)
    a, b = _prefer_full(rng, first_names), _prefer_full(rng, second_names)
    answer = smaller if first[axis] < second[axis] else larger
    text = _phrase(rng, PHRASINGS[family], a=a, b=b)
    return _about(text, (answer,), Mention(a, *first[2:]), Mention(b, *second[2:]))


def _where(objects: Objects, rng: np.random.Generator) -> Asked:
    candidates = []
    for o in objects:
        row, column = _third(o[3]), _third(o[2])
        names = list(_unique_names(o, objects))
        if row is not None and column is not None and names:
            candidates.append((names, ROWS[row], COLUMNS[column], o[2:]))
    if not candidates:
        return None
    names, row_word, column_word, place = _choose(rng, candidates)
    answers: tuple[str, ...] = (f"{row_word} {column_word}",)
    if (row_word, column_word) == ("middle", "center"):
        answers += ("center", "middle")
    name = _prefer_full(rng, names)
    return _about(_phrase(rng, PHRASINGS["where"], a=name), answers, Mention(name, *place))


_ASKERS: dict[str, Callable[[Objects, np.random.Generator], Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "left_right": _left_right,
    "above_below": _above_below,
    "where": _where,
}

PHRASINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "Which colour does the {shape} have?",
        "The {shape} is of what colour?",
    ),
    "shape": (
        "What shape is the {colour} object?",
        "What is the {colour} thing?",
        "Which shape does the {colour} object have?",
        "The {colour} object is a what?",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} do you see?",
        "Count the {things}.",
        "What is the number of {things}?",
    ),
    "existence": (
        "Is there a {thing}?",
        "Do you see a {thing}?",
        "Is a {thing} on the table?",
        "Can you find a {thing} in the picture?",
    ),
    "left_right": (
        "Is the {a} left or right of the {b}?",
        "Is the {a} to the left or to the right of the {b}?",
        "On which side of the {b} is the {a}, left or right?",
    ),
    "above_below": (
        "Is the {a} above or below the {b}?",
        "Is the {a} above or below the {b} in the picture?",
        "Seen in the picture, is the {a} above or below the {b}?",
    ),
    "where": (
        "Where is the {a}?",
        "Where in the picture is the {a}?",
        "In which part of the picture is the {a}?",
    ),
}


def _unique_names(thing: tuple[str, str, float, float], objects: Objects) -> Iterator[str]:
    """The ways to name `thing` that fit no other of `objects`, the full one first."""
    colour, shape, *_ = thing
    if sum(o[0] == colour and o[1] == shape for o in objects) == 1:
        yield f"{colour} {shape}"
    if sum(o[1] == shape for o in objects) == 1:
        yield shape
    if sum(o[0] == colour for o in objects) == 1:
        yield f"{colour} object"


def _prefer_full(rng: np.random.Generator, names: list[str]) -> str:
    return names[0] if rng.random() < 0.7 else _choose(rng, names)


def _third(coordinate: float) -> int | None:
    """Which third of the picture, or None within the margin of a border between two."""
    if any(abs(coordinate - border) < MARGIN_OF_REGION for border in (1 / 3, 2 / 3)):
        return None
    return min(int(coordinate * 3), 2)


def _phrase(rng: np.random.Generator, templates: tuple[str, ...], **words: str) -> str:
    return _choose(rng, templates).format(**words)


def _choose(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]
