"""What each image token should say about its patch: the auxiliary task that opens the vision tower's eyes.

Answers alone do not teach it: their cross-entropy stays at the language prior. So while pre-training, the projected
image tokens f (B, 64, D) are also asked, patch by patch, whether a thing's centre lies in the patch (a linear head),
and where one does, which colour and shape it has (f against the embeddings of these very words, so that words and
patches meet in one space) and where exactly it is (a linear head, regressing u and v). The heads are thrown away.

Legend: B images, P = 64 patches, M things at most, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_OF_PRESENCE = 4.0  # few patches hold a thing
WEIGHT_OF_PLACE = 20.0  # squared errors of coordinates in [0, 1] are small beside cross-entropies


class PatchTargets(NamedTuple):
    """Truth about patches; colour, shape and place hold where `present`."""

    present: Tensor  # (B, P) bool
    colour: Tensor  # (B, P) long
    shape: Tensor  # (B, P) long
    place: Tensor  # (B, P, 2) in [0, 1]


def patch_targets(colours: Tensor, shapes: Tensor, places: Tensor, *, grid: int) -> PatchTargets:
    """From things (B, M), a negative colour meaning none, to patches; of two in one patch the later counts."""
    batch = colours.shape[0]
    present = torch.zeros(batch, grid * grid, dtype=torch.bool)
    colour = torch.zeros(batch, grid * grid, dtype=torch.long)
    shape, place = colour.clone(), torch.zeros(batch, grid * grid, 2)
    cells = (places * grid).long().clamp(0, grid - 1)
    flat = cells[..., 1] * grid + cells[..., 0]  # (B, M), rows first as the tower lays them out
    image, thing = (colours >= 0).nonzero(as_tuple=True)
    where = (image, flat[image, thing])
    present[where] = True
    colour[where] = colours[image, thing].long()
    shape[where] = shapes[image, thing].long()
    place[where] = places[image, thing]
    return PatchTargets(present, colour, shape, place)


class PatchHeads(nn.Module):
    """The linear readers of presence and place. State: their weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.present = nn.Linear(width, 1)
        self.place = nn.Linear(width, 2)

    def loss(
        self, features: Tensor, targets: PatchTargets, *, colour_words: Tensor, shape_words: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The auxiliary loss and its readings.

        Args:
            features: (B, P, D), the projected image tokens.
            targets: The truth.
            colour_words: (6, D) embedding weights of the colours' tokens.
            shape_words: (4, D) embedding weights of the shapes' tokens.
        """
        present = self.present(features).squeeze(-1)  # (B, P)
        loss_present = WEIGHT_OF_PRESENCE * F.binary_cross_entropy_with_logits(present, targets.present.float())
        owned = features[targets.present]  # (n, D)
        colour, shape = owned @ colour_words.T, owned @ shape_words.T
        loss_colour = F.cross_entropy(colour, targets.colour[targets.present])
        loss_shape = F.cross_entropy(shape, targets.shape[targets.present])
        error = self.place(owned) - targets.place[targets.present]
        loss = loss_present + loss_colour + loss_shape + WEIGHT_OF_PLACE * error.square().sum(-1).mean()
        with torch.no_grad():
            readings = {
                "patch present": ((present > 0) == targets.present).all(1).float().mean().item(),
                "patch colour": (colour.argmax(-1) == targets.colour[targets.present]).float().mean().item(),
                "patch shape": (shape.argmax(-1) == targets.shape[targets.present]).float().mean().item(),
                "patch place": error.abs().mean().item(),
            }
        return loss, readings
