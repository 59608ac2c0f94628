"""Moments of each language layer's activations: the anchor's, or the frozen backbone's on the same batch."""

import torch
from torch import Tensor

from aegis_policy.aegis import GaussianAnchor, pooled_moments, wasserstein2
from aegis_policy.knowledge.drift import anchor_distances
from aegis_policy.knowledge.reference import Seen
from aegis_policy.knowledge.teacher import Teacher


class AnchorMoments:
    """Squared Wasserstein-2 to the anchor, one number a layer.

    Args:
        anchor: With moments for each language layer.
        relative: Over the anchor's own squared size, `||mu*||^2 + ||sigma*||^2`.
    """

    def __init__(self, anchor: GaussianAnchor, *, relative: bool) -> None:
        self._anchor = anchor
        self._relative = relative

    def __call__(self, seen: Seen) -> Tensor:
        """(L,)."""
        known = None if self._relative else seen.distances
        if known is not None:
            return known
        distances = anchor_distances(seen.outputs, seen.mask, self._anchor, pooled=True)
        if not self._relative:
            return distances
        sizes = [self._anchor.mean(n).square().sum() + self._anchor.std(n).square().sum() for n in seen.outputs]
        return distances / torch.stack(sizes)


class BatchMoments:
    """Squared Wasserstein-2 to the frozen backbone's moments on the same samples, so that the gap between VQA pictures
    and the robot's is no distance.

    Args:
        teacher: The frozen backbone.
        image_token: Id of the tokens that stand for images, to compare them and the others apart; None: all together.
    """

    def __init__(self, teacher: Teacher, *, image_token: int | None = None) -> None:
        self._teacher = teacher
        self._image_token = image_token

    def __call__(self, seen: Seen) -> Tensor:
        """(L,), or (2 L,) for two kinds of tokens."""
        teacher = self._teacher.outputs(seen.inputs)
        before, now = [teacher[name] for name in seen.outputs], list(seen.outputs.values())
        return torch.stack(
            [
                wasserstein2(*moments, *known)
                for kind in self._kinds(seen)
                for moments, known in zip(pooled_moments(now, kind), pooled_moments(before, kind), strict=True)
            ]
        )

    def _kinds(self, seen: Seen) -> list[Tensor]:
        if self._image_token is None:
            return [seen.mask]
        of_images = seen.inputs["input_ids"] == self._image_token
        return [seen.mask & of_images, seen.mask & ~of_images]
