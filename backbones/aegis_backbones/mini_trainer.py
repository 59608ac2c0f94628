"""One training step of the mini backbone's eyes, and its state; the language model is frozen throughout.

Stage "look": every image token says, of its part of the picture, what `patch_targets` asks for, colours and shapes
against the language model's own embeddings of these words. It costs no pass through the language model. Stage
"answer": cross-entropy of answers and of a description through the frozen language model (as LLaVA trains its
connector: Liu et al., arXiv:2304.08485, section 4.2), and the per-token targets. Batches depend on seed, stage and step
alone.

Precision: the eyes, their gradients and every sum in float32; the language model's linear maps in bfloat16 under
autocast where the processor multiplies such numbers itself, which is all that a frozen model needs. Where it does not
(AVX2 alone), they are emulated and many times slower than float32, and all stays in float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aegis_backbones.batches import questions_about, to_pixel_values
from aegis_backbones.language_model import LanguageModel
from aegis_backbones.mini import TOKEN_GRID, build_model, build_processor, eyes_of
from aegis_backbones.mini_batches import DESCRIBE, Writer, answer_loss, describe, write_rows
from aegis_backbones.patch_targets import PatchHeads, patch_targets
from aegis_backbones.questions import FAMILIES
from aegis_backbones.scene_store import Scenes
from aegis_backbones.scenes import ALL_SHAPES
from aegis_backbones.staged_trainer import LARGEST_SHIFT, WEIGHT_DECAY, Share, StagedTrainer, mean_readings
from aegis_envs.objects import COLOURS

PEAK_RATES = {"look": 2e-3, "answer": 1e-3}
IMAGES_A_BATCH = {"look": 48, "answer": 16}
QUESTIONS_AN_IMAGE = 4
DESCRIBE_WEIGHT = 1.0  # of a description's loss beside a question's
PATCH_WEIGHT = 0.5  # of the per-token loss while answers are learned
TOWER_RATE = 0.25  # of the learning rate: the tower has learned to look already
ALWAYS_ASKED = 0.05  # added to a family's error: its weight among the questions


class MiniTrainer(StagedTrainer):
    """State beyond `StagedTrainer`'s: the model, of which the eyes learn.

    Args:
        scenes: What is looked at and asked about.
        language: Language model and tokenizer; not changed but for the image marks in the tokenizer.
        seed: Of weights and batches.
        workers: Threads that share a batch.
    """

    def __init__(self, scenes: Scenes, *, language: LanguageModel, seed: int, workers: int) -> None:
        self.processor = build_processor(language.tokenizer)
        self.model = build_model(language, seed=seed).requires_grad_(False)
        self.model.set_attn_implementation("eager")
        self.language_dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
        for module in self.model.model.text_model.modules():
            if isinstance(module, nn.Linear):
                module.to(self.language_dtype)
        self.writer = Writer(self.processor)
        words = self.model.get_input_embeddings().weight
        self.patch_heads = PatchHeads(words.shape[1])
        self.colour_words = torch.stack([words[self.writer.word(c)].mean(0) for c in COLOURS])
        self.shape_words = torch.stack([words[self.writer.word(s)].mean(0) for s in ALL_SHAPES])
        self.scenes = scenes
        self.tower = [p.requires_grad_() for p in self.model.model.vision_model.parameters()]
        connector = [p.requires_grad_() for p in self.model.model.connector.parameters()]
        parameters = [*self.tower, *connector, *self.patch_heads.parameters()]
        super().__init__(parameters, self.patch_heads, peak_rates=PEAK_RATES, seed=seed, workers=workers)

    def _weights(self) -> dict[str, Tensor]:
        return eyes_of(self.model)

    def _new_optimizer(self) -> torch.optim.AdamW:
        tower = set(self.tower)
        groups = []
        for sees in (True, False):
            for decays in (True, False):
                members = [p for p in self.parameters if (p in tower) == sees and (p.ndim > 1) == decays]
                decay = WEIGHT_DECAY if decays else 0.0
                groups.append({"params": members, "weight_decay": decay, "rate": TOWER_RATE if sees else 1.0})
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))

    def train_step(self, progress: float) -> dict[str, float]:
        """One step, `progress` in [0, 1] through the stage; each worker thread takes a share of the batch."""
        rng = self._batch_generator()
        drawn = rng.choice(len(self.scenes.images), IMAGES_A_BATCH[self.stage], replace=False)
        scenes = self.scenes.take(drawn, mirrored=rng.random(len(drawn)) < 0.5)
        if self.stage == "look":
            scenes = scenes.shifted(rng.integers(-LARGEST_SHIFT, LARGEST_SHIFT, size=(len(drawn), 2), endpoint=True))
        shares = _shares(scenes, self.workers)
        share = self._look if self.stage == "look" else self._answer
        results = list(self.pool.map(share, shares, rng.integers(2**31, size=len(shares))))
        return mean_readings(self._take_step(results, progress))

    def _features(self, scenes: Scenes) -> Tensor:
        pixels = to_pixel_values(scenes.images)[:, None]  # (B, 1, 3, 96, 96)
        return self.model.get_image_features(pixels).pooler_output  # (B, 16, D)

    def _patch_loss(self, features: Tensor, scenes: Scenes) -> tuple[Tensor, dict[str, float]]:
        colours, shapes, places = (torch.from_numpy(a) for a in (scenes.colours, scenes.shapes, scenes.places))
        return self.patch_heads.loss(
            features,
            patch_targets(colours, shapes, places, grid=TOKEN_GRID),
            colour_words=self.colour_words,
            shape_words=self.shape_words,
        )

    def _look(self, scenes: Scenes, _seed: int) -> Share:
        loss, readings = self._patch_loss(self._features(scenes), scenes)
        return torch.autograd.grad(loss, self.parameters), {"loss": loss.item(), **readings}

    def _answer(self, scenes: Scenes, seed: int) -> Share:
        features = self._features(scenes)
        weights = self.family_error + ALWAYS_ASKED
        answers, readings = self._ask(scenes, features, np.random.default_rng(seed), weights / weights.sum())
        patch, looks = self._patch_loss(features, scenes)
        asked, described = answers[:, :-1].mean(), answers[:, -1].mean()
        loss = asked + DESCRIBE_WEIGHT * described + PATCH_WEIGHT * patch
        shown = {"loss": asked.item(), DESCRIBE: described.item(), "patch shape": looks["patch shape"]}
        return torch.autograd.grad(loss, self.parameters), {**shown, **readings}

    def _ask(
        self, scenes: Scenes, features: Tensor, rng: np.random.Generator, weights: np.ndarray
    ) -> tuple[Tensor, dict[str, float]]:
        """Losses (B, K), the description's last, and the share of right answers of each family that was asked."""
        questions = questions_about(scenes, rng, each=QUESTIONS_AN_IMAGE, weights=weights)
        for index, about_one in enumerate(questions):
            about_one.append(describe(scenes.objects(index)))
        rows = write_rows(self.writer, questions)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.language_dtype == torch.bfloat16):
            answers = answer_loss(
                self.model, rows, features, image_at=self.writer.image_at, branches=QUESTIONS_AN_IMAGE + 1
            )
        right: dict[str, list[bool]] = {}
        for about_one, found in zip(questions, answers.correct.tolist(), strict=True):
            for question, correct in zip(about_one[:-1], found[:-1], strict=True):
                right.setdefault(question.family, []).append(correct)
        return answers.loss, {family: float(np.mean(right[family])) for family in FAMILIES if family in right}

    @torch.no_grad()
    def held_out(self, scenes: Scenes, *, seed: int = 0) -> dict[str, float]:
        """What the running stage has reached on other scenes: per-token readings, or right answers by family.

        One pass without generation.
        """
        rng, weights = np.random.default_rng(seed), np.full(len(FAMILIES), 1 / len(FAMILIES))
        readings = []
        for part in _shares(scenes, max(1, len(scenes.images) // IMAGES_A_BATCH["answer"])):
            features = self._features(part)
            readings.append(self._patch_loss(features, part)[1])
            if self.stage == "answer":
                losses, right = self._ask(part, features, rng, weights)
                readings[-1] = {"loss": losses[:, :-1].mean().item(), DESCRIBE: losses[:, -1].mean().item(), **right}
        return mean_readings(readings)


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (AVX-512 BF16, AMX, Arm's BF16).

    No for a torch that cannot say: float32 is right everywhere, and slower at worst by a small factor.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has is True for name, has in capabilities.items() if name.endswith("bf16"))


def _shares(scenes: Scenes, parts: int) -> list[Scenes]:
    indices = np.array_split(np.arange(len(scenes.images)), parts)
    return [scenes.take(i, mirrored=np.zeros(len(i), bool)) for i in indices if len(i)]
