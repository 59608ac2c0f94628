"""Training the mini backbone's eyes: branches are separate prompts, the language model rests, resuming is exact."""

import numpy as np
import pytest
import torch

from aegis_backbones import mini_trainer
from aegis_backbones.language_model import LanguageModel
from aegis_backbones.mini import build_model, build_processor, eyes_of
from aegis_backbones.mini_batches import Writer, answer_loss, describe, write_rows
from aegis_backbones.mini_trainer import IMAGES_A_BATCH, MiniTrainer
from aegis_backbones.questions import Question
from aegis_backbones.scene_store import Scenes
from aegis_backbones.staged_trainer import STAGES, WARM_UP
from aegis_policy.network.prompt import encode_prompts
from tests.backbones.tiny_language import tiny_language

QUESTIONS = [
    [Question("What colour is the cube?", ("red",), "colour"), Question("Where?", ("top left",), "where")],
    [Question("How many?", ("3",), "count"), Question("Is there a ball?", ("yes",), "existence")],
]


def make_trainer() -> MiniTrainer:
    rng = np.random.default_rng(0)
    count = max(IMAGES_A_BATCH.values())
    places = (np.array([[0.2, 0.2], [0.8, 0.8]]) + rng.uniform(-0.1, 0.1, (count, 2, 2))).astype(np.float32)
    scenes = Scenes(
        images=rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8),
        colours=np.tile(np.array([0, 1], np.int8), (count, 1)),
        shapes=np.tile(np.array([1, 0], np.int8), (count, 1)),
        places=places,
    )
    return MiniTrainer(scenes, language=tiny_language(), seed=0, workers=1)


@pytest.fixture(scope="module")
def model_and_processor():
    spoken: LanguageModel = tiny_language()
    processor = build_processor(spoken.tokenizer)
    model = build_model(spoken, seed=0)
    model.set_attn_implementation("eager")
    return model, processor


def test_a_branch_costs_what_its_own_prompt_costs_and_knows_nothing_of_the_other(model_and_processor):
    model, processor = model_and_processor
    writer = Writer(processor)
    images = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    pixels = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]
    with torch.no_grad():
        features = model.get_image_features(torch.stack([p.float() / 127.5 - 1 for p in pixels])[:, None]).pooler_output
        found = answer_loss(model, write_rows(writer, QUESTIONS), features, image_at=writer.image_at, branches=2)
        for row, about_one in enumerate(QUESTIONS):
            for k, question in enumerate(about_one):
                inputs = encode_prompts(processor, [[pixels[row]]], [question.question])
                answer = processor.tokenizer(question.answers[0] + processor.tokenizer.eos_token)["input_ids"]
                ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
                mask = torch.ones_like(ids)
                given = {**inputs, "input_ids": ids, "attention_mask": mask}
                logits = model(**given).logits[0, -len(answer) - 1 : -1]
                alone = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
                # Sums of another order, through two layers in float32.
                torch.testing.assert_close(found.loss[row, k], alone, atol=1e-4, rtol=1e-4)


def test_a_description_names_every_thing_from_left_to_right():
    things = [("blue", "ball", 0.9, 0.5), ("red", "cube", 0.1, 0.05)]
    assert describe(things).answers == ("red cube top left, blue ball middle right",)
    assert describe([]).answers == ("nothing",)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_trainer_takes_the_step_of_the_one_that_went_on(stage, tmp_path):
    straight = make_trainer()
    straight.start_stage(stage)
    straight.train_step(0.5)
    straight.save(tmp_path / "checkpoint.pt")
    resumed = make_trainer()
    resumed.load(tmp_path / "checkpoint.pt")
    assert straight.train_step(0.6) == resumed.train_step(0.6)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters, resumed.parameters, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_only_eyes_and_heads_move(stage):
    trainer = make_trainer()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.start_stage(stage)
    trainer.train_step(0.5)
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.removeprefix("model.") for name in moved} == set(eyes_of(trainer.model))


def test_a_processor_without_bfloat16_learns_the_same_in_float32(monkeypatch):
    losses = {}
    for dtype, has in ((torch.bfloat16, True), (torch.float32, False)):
        monkeypatch.setattr(mini_trainer, "multiplies_bfloat16", lambda has=has: has)
        trainer = make_trainer()
        trainer.start_stage("answer")
        linear = next(m for m in trainer.model.model.text_model.modules() if isinstance(m, torch.nn.Linear))
        assert linear.weight.dtype == dtype
        losses[dtype] = trainer.train_step(0.5)["loss"]
    # bfloat16 has 8 bits of mantissa, and the tiny model two layers
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)


def test_describing_one_batch_again_and_again_is_learned_through_the_frozen_language_model():
    trainer = make_trainer()
    trainer.start_stage("answer")
    losses = []
    for _ in range(5):
        trainer.step = WARM_UP  # the same pictures each time
        losses.append(trainer.train_step(0.0)["describe"])
    assert losses[-1] < losses[0] - 0.1


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    trainer = make_trainer()
    trainer.save(tmp_path / "checkpoint.pt")
    trainer.seed = 1
    with pytest.raises(ValueError, match="--seed 0"):
        trainer.load(tmp_path / "checkpoint.pt")
