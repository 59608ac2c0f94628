"""The pre-training goes on from a checkpoint as if it had never stopped, and moves in each stage what it says."""

import numpy as np
import pytest
import torch

from aegis_backbones.scene_store import Scenes
from aegis_backbones.staged_trainer import STAGES
from aegis_backbones.trainer import IMAGES_A_BATCH, VISION_RATE, Trainer


def make_trainer(workers: int = 1) -> Trainer:
    rng = np.random.default_rng(0)
    count = max(IMAGES_A_BATCH.values())
    places = (np.array([[0.2, 0.2], [0.8, 0.8]]) + rng.uniform(-0.1, 0.1, (count, 2, 2))).astype(np.float32)
    scenes = Scenes(
        images=rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8),
        colours=np.tile(np.array([0, 1], np.int8), (count, 1)),
        shapes=np.tile(np.array([1, 0], np.int8), (count, 1)),
        places=places,
    )
    return Trainer(dict.fromkeys(STAGES, scenes), seed=0, workers=workers)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_trainer_takes_the_step_of_the_one_that_went_on(stage, tmp_path):
    straight = make_trainer()
    straight.start_stage(stage)
    straight.train_step(0.5)
    straight.save(tmp_path / "checkpoint.pt")
    resumed = make_trainer()
    resumed.load(tmp_path / "checkpoint.pt")
    assert straight.train_step(0.5) == resumed.train_step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters, resumed.parameters, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_more_workers_than_pictures_share_them_too(stage):
    trainer = make_trainer(workers=IMAGES_A_BATCH[stage])
    trainer.start_stage(stage)
    assert all(np.isfinite(value) for value in trainer.train_step(0.5).values())


def test_the_vision_side_moves_slowly_while_answers_are_learned():
    trainer = make_trainer()
    trainer.start_stage("answer")
    trainer.train_step(0.5)
    tower = next(trainer.model.model.vision_tower.parameters())
    word = trainer.model.get_input_embeddings().weight
    rates = {p: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(trainer.parameters)
    assert rates[tower] == pytest.approx(VISION_RATE * rates[word])
