"""What is said: verbs and referring expressions, some shown in demonstrations and some never.

An instruction is a task's template with a referring expression in it:

    "tap {object}"  +  "the leftmost object"  ->  "tap the leftmost object"

Demonstrations name the object by colour and shape. What they never do is evaluated apart: one of the two words alone
("the red object", "the cylinder"), other verbs, and expressions that have to be worked out from the scene. A task may
also be put as a question that is answered by acting ("which one is the green cylinder?", answered by touching it:
Act2Answer, arXiv 2606.19297). Which expressions fit only one object is for the scene to see to (layout.py), so each one
is a class of scenes as much as a phrase.

How much of it a backbone can know differs. The embedded one was asked about "the red object" and "the cylinder" while
it was pre-trained. The other verbs and the expressions about the scene were in no question that it ever saw.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from aegis_envs.objects import ObjectKind

CHOICES = ("shown", "never_shown", "attributes", "shapes", "all", "questions")


class Reference(StrEnum):
    """How an instruction refers to the object it is about."""

    NAME = "name"  # the red cube
    COLOUR = "colour"  # the red object
    SHAPE = "shape"  # the cube
    OTHER_SHAPE = "other_shape"  # the object that is not a cube
    LEFTMOST = "leftmost"  # in the front camera's image
    RIGHTMOST = "rightmost"


ATTRIBUTES = (Reference.COLOUR, Reference.SHAPE)
NEVER_SHOWN_REFERENCES = (Reference.OTHER_SHAPE, Reference.LEFTMOST, Reference.RIGHTMOST)


@dataclass(frozen=True)
class Templates:
    """A task's sentences, with `{object}` and, where there is a target, `{disc}` to be filled in.

    `questions`, and references by one attribute, are never shown either and not among "never_shown": they are asked
    apart.
    """

    shown: tuple[str, ...]
    never_shown: tuple[str, ...]
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phrasing:
    """One way to say an instruction: a template and a kind of referring expression."""

    template: str
    reference: Reference

    def instruction(self, target: ObjectKind, others: tuple[ObjectKind, ...], disc: ObjectKind | None) -> str:
        """The sentence about `target` in a scene with `others`."""
        expression = {
            Reference.NAME: f"the {target}",
            Reference.COLOUR: f"the {target.colour} object",
            Reference.SHAPE: f"the {target.shape}",
            Reference.OTHER_SHAPE: f"the object that is not a {others[0].shape if others else ''}",
            Reference.LEFTMOST: "the leftmost object",
            Reference.RIGHTMOST: "the rightmost object",
        }[self.reference]
        return self.template.format(object=expression, disc=f"the {disc}")


def draw_phrasing(templates: Templates, choice: str, rng: np.random.Generator) -> Phrasing:
    """Draws a phrasing of one of `CHOICES`: `"all"` is `"shown"` or `"never_shown"`.

    Half of the never-shown phrasings have a new verb, half a known verb and a new referring expression. With attributes
    the verb is a shown one, and the object is named by its colour or by its shape alone, one as often as the other;
    with shapes always by its shape.

    Raises:
        ValueError: If `choice` is none of these, or questions are asked of a task that has none.
    """
    if choice not in CHOICES:
        raise ValueError(f"phrasings must be one of {', '.join(CHOICES)}; got {choice!r}.")
    if choice == "questions":
        if not templates.questions:
            raise ValueError("phrasings=questions asks what can be answered by touching: use it with task touch.")
        return Phrasing(str(rng.choice(templates.questions)), Reference.NAME)
    if choice == "all":
        choice = str(rng.choice(["shown", "never_shown"]))
    if choice == "shown":
        return Phrasing(str(rng.choice(templates.shown)), Reference.NAME)
    if choice == "attributes":
        return Phrasing(str(rng.choice(templates.shown)), ATTRIBUTES[rng.integers(len(ATTRIBUTES))])
    if choice == "shapes":
        return Phrasing(str(rng.choice(templates.shown)), Reference.SHAPE)
    if rng.random() < 0.5:
        return Phrasing(str(rng.choice(templates.never_shown)), Reference.NAME)
    reference = NEVER_SHOWN_REFERENCES[rng.integers(len(NEVER_SHOWN_REFERENCES))]
    return Phrasing(str(rng.choice(templates.shown)), reference)
