"""What is knowledge? A reference turns a forward pass into distances whose gradient leads back to it.

The use that is made of that gradient is decided elsewhere: projected on (`protection`), or added to the loss
(`--policy.penalty_weight`). Each reference is a file of `references`:

    moments            squared Wasserstein-2 to the anchor, a layer (arXiv 2604.16067)
    relative_moments   the same over the anchor's own size, so that no layer with large activations owns the sum
    batch_moments      the same to the frozen backbone's moments on this very batch
    kind_moments       that for image tokens and for the other tokens apart
    features           the frozen backbone's hidden states on this batch, layer by layer
    answers            its answers to generic questions about the batch's images (learning without forgetting)
    weights            the pre-trained weights (L2-SP, arXiv 1802.01483)
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

REFERENCES = ("moments", "relative_moments", "batch_moments", "kind_moments", "features", "answers", "weights")
ANCHORED = ("moments", "relative_moments")  # those that compare with the anchor


class Seen(NamedTuple):
    """A batch, and what the backbone's layers put out on it.

    Attributes:
        batch: As the policy got it.
        inputs: The VLM's own inputs.
        outputs: Language layer -> (B, T, D), with their graph.
        mask: (B, T), true where a token counts.
        step: Of the training.
        distances: W2^2 of each layer from the anchor, (L,), where somebody has computed them from these outputs.
        micro_batch: Which one it is, from 0, of those whose gradients add up to one step.
    """

    batch: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    mask: Tensor
    step: int
    distances: Tensor | None = None
    micro_batch: int = 0

    def first(self, count: int) -> "Seen":
        """The first `count` samples of it; all of it for 0 or more than there are.

        A VLM's input may hold several rows a sample (images, patches); they count evenly.
        """
        size = len(self.mask)
        if not 0 < count < size:
            return self
        rows = {k for k, v in self.batch.items() if isinstance(v, Tensor) and v.ndim and len(v) == size}
        return self._replace(
            batch={k: v[:count] if k in rows else v for k, v in self.batch.items()},
            inputs={k: v[: len(v) // size * count] for k, v in self.inputs.items()},
            outputs={k: v[:count] for k, v in self.outputs.items()},
            mask=self.mask[:count],
            distances=None,
        )


class Reference(Protocol):
    """What the backbone is compared with."""

    def __call__(self, seen: Seen) -> Tensor:
        """Distances (n,), differentiable and not negative; their sum is the penalty."""
        ...
