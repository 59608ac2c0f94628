"""What keeps the backbone's knowledge while one policy trains: protection of the step, reference, co-training.

The policy hands over what a forward pass showed; from here come the gradients that the optimizer projects on and the
terms that are added to the action loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aegis_policy.aegis import GaussianAnchor, average_over_ranks
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.adapters import AdapterProtection, trained_adapters
from aegis_policy.knowledge.controller import PenaltyController
from aegis_policy.knowledge.cotraining import CoTraining
from aegis_policy.knowledge.drift import anchor_distances, watch_outputs
from aegis_policy.knowledge.protection import Protection
from aegis_policy.knowledge.reference import Reference, Seen
from aegis_policy.knowledge.references import make_reference
from aegis_policy.knowledge.teacher import Teacher
from aegis_policy.knowledge.trainable import choose_trainable
from aegis_policy.network.backbone import Backbone, Prefix
from aegis_policy.pretrained.start import load_backbone
from aegis_policy.vqa import load_vqa_source


class Retention:
    """Chooses what of the backbone trains, and keeps what it knows as the configuration says.

    State: the guard that the optimizer attaches to; VQA samples once co-training has begun.

    Args:
        config: Of the policy.
        backbone: The one that trains; `requires_grad` of its parameters is set.
        anchor: Of the pre-trained backbone, where the configuration needs one.
        processor: The VLM's own.
        controller: Adapts the weight of the penalty; None where it is fixed.
        adapted: Whether peft has put adapters into the backbone and chosen what of it trains.
    """

    def __init__(
        self,
        config: AegisVLAConfig,
        backbone: Backbone,
        anchor: GaussianAnchor | None,
        processor: Any,
        controller: PenaltyController | None = None,
        *,
        adapted: bool = False,
    ) -> None:
        self._config = config
        self._recipe = recipe = config.recipe
        self._backbone = backbone
        self._anchor = anchor
        self._processor = processor
        self._controller = controller
        self._cotraining: CoTraining | None = None
        self.adapted = adapted
        learns = trained_adapters(backbone.vlm) if adapted else self._choose_trainable()
        self.protection: Protection | None = None
        if config.knowledge == "aegis":
            assert anchor is not None, "aegis builds its anchor on start"
            protect = AdapterProtection if adapted else Protection
            self.protection = protect(
                backbone.vlm,
                learns,
                anchor,
                projection=recipe.projection,
                closes={"energy": recipe.energy, "directions": recipe.directions, "epsilon": config.epsilon},
            )
        self._reference: Reference | None = None
        if recipe.penalty_weight or config.projects_on_reference:
            self._reference = make_reference(
                recipe.reference,
                backbone=backbone,
                teacher=Teacher(lambda: load_backbone(config), backbone),
                anchor=anchor,
                processor=processor,
                image_keys=list(config.image_features),
                questions=config.reference_questions,
                every=recipe.reference_every,
            )

    def _choose_trainable(self) -> dict[str, nn.Parameter]:
        return choose_trainable(
            self._backbone,
            knowledge=self._config.knowledge,
            projection=self._recipe.projection,
            tune_vision=self._config.tune_vision,
            answers=self._config.cotraining_share > 0,
            anchored=set() if self._anchor is None else set(self._anchor.weights),
        )

    def distances(self, outputs: Mapping[str, Tensor], mask: Tensor, *, training: bool) -> Tensor | None:
        """W2^2 to the anchor, (L,); None without an anchor.

        Where the reference goes through it, with its graph and of all ranks' tokens; else of this rank's.
        """
        if self._anchor is None:
            return None
        wanted = training and self._reference is not None and self._recipe.reference == "moments"
        with torch.set_grad_enabled(wanted):
            return anchor_distances(outputs, mask, self._anchor, pooled=wanted)

    def leave_anchor_gradient(self, loss: Tensor, seen: Seen, encode: Callable[[dict[str, Tensor]], Prefix]) -> None:
        """The reference's gradient beside each protected parameter, where the projection wants one, as the loss's
        comes.

        Between the steps at which the reference is looked at, that of the last look. The first step after a restart
        always looks, so a resumed training is the uninterrupted one where checkpoints come at multiples of
        `reference_every`.

        Args:
            loss: What is trained on, with its graph.
            seen: The batch.
            encode: Runs the backbone on a VLM's inputs.
        """
        if self.protection is None or not self.protection.needs_anchor_gradient:
            return
        assert self._reference is not None, "made with the protection"
        if seen.step % self._recipe.reference_every and self.protection.repeat_anchor_gradient(loss):
            return
        few = seen.first(self._recipe.reference_samples)
        if few is not seen:  # a pass of its own: backward through the batch's graph would cost the whole batch
            with watch_outputs(self._backbone.layers()) as outputs:
                encode(dict(few.inputs))
            few = few._replace(outputs=outputs)
        keep = self._recipe.reference_every > 1
        self.protection.leave_anchor_gradient(loss, self._reference(few).sum(), keep=keep)

    def added_losses(self, seen: Seen, *, seed: int) -> dict[str, Tensor]:
        """What is added to the action loss, by its name in the log: the weighted penalty, the loss of VQA samples.

        Args:
            seen: The batch.
            seed: Of the VQA samples' order.
        """
        config, recipe = self._config, self._recipe
        terms: dict[str, Tensor] = {}
        # The last of so many steps looks, for that is the one that logs tell of.
        if recipe.penalty_weight and (seen.step + 1) % recipe.reference_every == 0:
            assert self._reference is not None, "made with the choice of what trains"
            distance = self._reference(seen.first(recipe.reference_samples)).sum()
            scale: float | Tensor = 1.0
            if self._controller is not None and seen.micro_batch:
                scale = self._controller.scale  # it adapts once a step
            elif self._controller is not None:
                # Of all ranks' samples: a scale of each rank's own would be overwritten by that of rank 0.
                scale = self._controller(average_over_ranks(distance.detach()))
            terms["penalty"] = recipe.penalty_weight * recipe.reference_every * scale * distance
        if config.cotraining_share:
            if self._cotraining is None:
                source = load_vqa_source(config.anchor_source)
                samples = source(count=config.cotraining_samples, seed=0, split="train")
                self._cotraining = CoTraining(samples, self._processor, share=config.cotraining_share, seed=seed)
            terms["vqa_loss"] = self._cotraining.loss(
                self._backbone,
                step=seen.step,
                micro_batch=seen.micro_batch,
                beside=len(seen.mask),
                device=seen.mask.device,
            )
        return terms
