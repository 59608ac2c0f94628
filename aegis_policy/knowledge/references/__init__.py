"""One file a reference, and the table that builds them from their names."""

from collections.abc import Sequence
from typing import Any

from aegis_policy.aegis import GaussianAnchor
from aegis_policy.knowledge.reference import ANCHORED, Reference
from aegis_policy.knowledge.references.answers import Answers
from aegis_policy.knowledge.references.features import Features
from aegis_policy.knowledge.references.moments import AnchorMoments, BatchMoments
from aegis_policy.knowledge.references.weights import Weights
from aegis_policy.knowledge.teacher import Teacher
from aegis_policy.network.backbone import Backbone


def make_reference(
    name: str,
    *,
    backbone: Backbone,
    teacher: Teacher,
    anchor: GaussianAnchor | None,
    processor: Any,
    image_keys: Sequence[str],
    questions: Sequence[str],
    every: int = 1,
) -> Reference:
    """The reference called `name`, one of `REFERENCES`.

    Args:
        name: Which one.
        backbone: The one that learns.
        teacher: The one that does not.
        anchor: Of the pre-trained backbone; the two references of moments need it.
        processor: The VLM's own, for "answers".
        image_keys: The policy's cameras, for "answers".
        questions: What "answers" asks.
        every: Steps from one look at it to the next.
    """
    if name in ANCHORED:
        assert anchor is not None, "the policy builds its anchor on start"
        return AnchorMoments(anchor, relative=name == "relative_moments")
    if name in ("batch_moments", "kind_moments"):
        return BatchMoments(teacher, image_token=backbone.image_token if name == "kind_moments" else None)
    if name == "features":
        return Features(teacher)
    if name == "weights":
        return Weights(backbone, teacher)
    if name == "answers":
        return Answers(backbone, teacher, processor=processor, image_keys=image_keys, questions=questions, every=every)
    raise ValueError(f"There is no reference {name!r}.")
