"""One training step of the nano backbone, and its state.

Stage "look": the per-patch loss on projected image tokens. Stage "answer": cross-entropy of answers, what the
questions are about and where it is, and the per-patch loss; the vision side, which has learned to look, moves slowly.
Pictures depend on seed, stage and step alone, questions about them also on how many workers share a batch.
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from aegis_backbones.architecture import GRID, WIDTH, build_model, build_processor
from aegis_backbones.batches import Tokens, answer_loss, collate, questions_about, to_pixel_values
from aegis_backbones.grounding import GroundingHead
from aegis_backbones.patch_targets import PatchHeads, patch_targets
from aegis_backbones.questions import FAMILIES
from aegis_backbones.scene_store import Scenes
from aegis_backbones.scenes import ALL_SHAPES
from aegis_backbones.staged_trainer import LARGEST_SHIFT, WEIGHT_DECAY, Share, StagedTrainer
from aegis_backbones.tokenizer import train_tokenizer
from aegis_envs.objects import COLOURS

PEAK_RATES = {"look": 2e-3, "answer": 1.5e-3}
IMAGES_A_BATCH = {"look": 48, "answer": 32}
QUESTIONS_AN_IMAGE = 4
PATCH_WEIGHT = 0.5  # of the per-patch loss while answers are learned
VISION_RATE = 0.15  # of the learning rate, for tower and projector while answers are learned
ALWAYS_ASKED = 0.02  # added to a family's error: its weight among the questions


class Trainer(StagedTrainer):
    """State beyond `StagedTrainer`'s: the model, all of which learns.

    Args:
        scenes: Stage -> what it is trained on.
        seed: Of weights and batches.
        workers: Threads that share a batch.
    """

    def __init__(self, scenes: dict[str, Scenes], *, seed: int, workers: int) -> None:
        self.processor = build_processor(train_tokenizer())
        self.model = build_model(self.processor.tokenizer, seed=seed).train()
        self.patch_heads, self.grounding_head = PatchHeads(WIDTH), GroundingHead(WIDTH)
        self.scenes = scenes
        self.tokens = Tokens(self.processor.tokenizer)
        self.colour_words = torch.tensor([self.tokens.word(c) for c in COLOURS])
        self.shape_words = torch.tensor([self.tokens.word(s) for s in ALL_SHAPES])
        heads = nn.ModuleList([self.patch_heads, self.grounding_head])
        parameters = [*self.model.parameters(), *heads.parameters()]
        super().__init__(parameters, heads, peak_rates=PEAK_RATES, seed=seed, workers=workers)

    def _weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = self.model.state_dict()
        return weights

    def _new_optimizer(self) -> torch.optim.AdamW:
        sight = {*self.model.model.vision_tower.parameters(), *self.model.model.multi_modal_projector.parameters()}
        groups = []
        for sees, decays in product((True, False), repeat=2):
            members = [p for p in self.parameters if (p in sight) == sees and (p.ndim > 1) == decays]
            rate = VISION_RATE if sees and self.stage == "answer" else 1.0
            groups.append({"params": members, "weight_decay": WEIGHT_DECAY if decays else 0.0, "rate": rate})
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))

    def train_step(self, progress: float) -> dict[str, float]:
        """One step, `progress` in [0, 1] through the stage.

        Each worker thread takes shares of the batch: two threads with one core each waste less than two cores on each
        small operation, and do not stall when a core is busy elsewhere.
        """
        rng = self._batch_generator()
        stock = self.scenes[self.stage]
        drawn = rng.choice(len(stock.images), IMAGES_A_BATCH[self.stage], replace=False)
        scenes = stock.take(drawn, mirrored=rng.random(len(drawn)) < 0.5)
        if self.stage == "look":
            scenes = scenes.shifted(rng.integers(-LARGEST_SHIFT, LARGEST_SHIFT, size=(len(drawn), 2), endpoint=True))
        shares = [scenes.take(i, mirrored=np.zeros(len(i), bool)) for i in _split(len(drawn), parts=2 * self.workers)]
        seeds = rng.integers(2**31, size=len(shares))
        share = self._look if self.stage == "look" else self._answer
        readings = self._take_step(list(self.pool.map(share, shares, seeds)), progress)
        return {k: float(np.mean([r[k] for r in readings if k in r])) for k in readings[0]}

    def _patch_loss(self, features: Tensor, scenes: Scenes) -> tuple[Tensor, dict[str, float]]:
        colours, shapes, places = (torch.from_numpy(a) for a in (scenes.colours, scenes.shapes, scenes.places))
        words = self.model.get_input_embeddings().weight
        return self.patch_heads.loss(
            features,
            patch_targets(colours, shapes, places, grid=GRID),
            colour_words=words[self.colour_words],
            shape_words=words[self.shape_words],
        )

    def _gradients(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def _look(self, scenes: Scenes, _seed: int) -> Share:
        features = self.model.get_image_features(to_pixel_values(scenes.images)).pooler_output
        loss, readings = self._patch_loss(features, scenes)
        return self._gradients(loss), {"loss": loss.item(), **readings}

    def _answer(self, scenes: Scenes, seed: int) -> Share:
        rng = np.random.default_rng(seed)
        weights = self.family_error + ALWAYS_ASKED
        questions = questions_about(scenes, rng, each=QUESTIONS_AN_IMAGE, weights=weights / weights.sum())
        batch = collate(scenes.images, questions, self.tokens)
        features = self.model.get_image_features(batch.pixel_values).pooler_output
        answers = answer_loss(self.model, batch, features)
        patch, readings = self._patch_loss(features, scenes)
        grounding, found = self.grounding_head.loss(answers, batch)
        readings |= found
        for i, family in enumerate(FAMILIES):
            if bool((batch.family == i).any()):
                readings[family] = answers.correct[batch.family == i].float().mean().item()
        gradients = self._gradients(answers.loss + grounding + PATCH_WEIGHT * patch)
        return gradients, {"loss": answers.loss.item(), **readings}

    def held_out(self, scenes: Scenes, *, seed: int = 0) -> dict[str, float]:
        """What the running stage has reached on other scenes: patch readings, or share of right answers by family.

        One pass without generation.
        """
        rng = np.random.default_rng(seed)
        weights = np.full(len(FAMILIES), 1 / len(FAMILIES))
        correct, family, patches = [], [], []
        for indices in _split(len(scenes.images), parts=max(1, len(scenes.images) // IMAGES_A_BATCH["answer"])):
            part = scenes.take(indices, mirrored=np.zeros(len(indices), bool))
            with torch.no_grad():
                features = self.model.get_image_features(to_pixel_values(part.images)).pooler_output
                patches.append(self._patch_loss(features, part)[1])
                if self.stage == "answer":
                    questions = questions_about(part, rng, each=QUESTIONS_AN_IMAGE, weights=weights)
                    batch = collate(part.images, questions, self.tokens)
                    correct.append(answer_loss(self.model, batch, features).correct)
                    family.append(batch.family)
        looks = {k: float(np.mean([p[k] for p in patches])) for k in patches[0]}
        if self.stage == "look":
            return looks
        right, kind = torch.cat(correct).float(), torch.cat(family)
        answers = {name: right[kind == i].mean().item() for i, name in enumerate(FAMILIES)}
        return {**answers, "patch shape": looks["patch shape"]}


def _split(count: int, *, parts: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), min(count, parts))  # none of them empty, whatever the number of cores
