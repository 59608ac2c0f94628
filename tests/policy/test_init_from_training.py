"""After the start everything else of aegis_vla works: anchor, references, answers, stock training and its resume."""

import shutil
from functools import partial

import pytest
import torch
from lerobot.policies import make_pre_post_processors
from safetensors.torch import load_file, save_file

from aegis_policy.aegis import fingerprint
from aegis_policy.answering import load_vlm
from aegis_policy.build_anchor import main as build_anchor
from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.knowledge.reference import Seen
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.processor_aegis_vla import vlm_inputs
from tests.policy.conftest import make_samples
from tests.policy.test_stock_commands import dataset, lerobot_train, losses  # noqa: F401  a fixture among them
from tests.policy.tiny_lerobot import FAMILIES, paligemma_processor, raw_batch, save_policy, shrink

EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"


def test_the_anchor_is_that_of_the_vlm_inside_the_checkpoint(lerobot, tiny_folder, tmp_path):
    pair = lerobot("pi0")
    # What lies beside the processor belongs to another model.
    shutil.copy(tiny_folder["paligemma2"] / "anchor.safetensors", tmp_path / "paligemma" / "anchor.safetensors")
    policy = pair.start(knowledge="aegis", anchor_samples=8)
    assert policy.anchor.fingerprint == fingerprint(policy.backbone.vlm.state_dict())
    file = tmp_path / "anchor.safetensors"
    build_anchor([f"--init-from={pair.folder}", "--count=8", f"--out={file}"])
    from_file = pair.start(knowledge="aegis", anchor_path=str(file))
    assert from_file.anchor.fingerprint == policy.anchor.fingerprint
    with pytest.raises(ValueError, match="anchor"):
        lerobot("pi0", max_state_dim=6).start(
            knowledge="aegis", anchor_path=str(tiny_folder["paligemma2"] / "anchor.safetensors")
        )


def test_training_keeps_closed_directions_and_moves_the_rest(lerobot):
    policy = lerobot("pi0").start(knowledge="aegis", anchor_samples=8, energy=0.9)
    before = {name: p.detach().clone() for name, p in policy.backbone.vlm.named_parameters()}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    policy.train()
    batch = make_pre_post_processors(policy.config)[0](raw_batch(training=True))
    policy.forward(batch)[0].backward()
    optimizer.step()
    projectors = policy.anchor.projectors(energy=0.9, epsilon=None)
    moved = 0
    for name, parameter in policy.backbone.vlm.named_parameters():
        step = parameter.detach() - before[name]
        if step.any():
            moved += 1
            # P is a projection, so a step that keeps off the closed directions is its own image; weights are stored
            # in float32, which rounds each sum by half a unit in the last place of the weight
            rounding = before[name].abs().max() * torch.finfo(torch.float32).eps * step.shape[1] ** 0.5
            assert (step - step @ projectors[name]).abs().max() < rounding
    assert moved > 10


@pytest.mark.parametrize("reference", ["batch_moments", "features", "answers", "weights"])
def test_the_teacher_is_the_vlm_inside_the_checkpoint_too(lerobot, reference):
    policy = lerobot("pi05").start(reference=reference, penalty_weight=1.0)

    def distance() -> float:
        batch = make_pre_post_processors(policy.config)[0](raw_batch())
        inputs = vlm_inputs(batch)
        with watch_outputs(policy.backbone.layers()) as outputs:
            prefix = policy.backbone.encode(inputs)
        return policy._retention._reference(Seen(batch, inputs, outputs, prefix.mask, 0)).sum().item()

    assert distance() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        policy.backbone.vlm.model.language_model.layers[1].mlp.up_proj.weight.mul_(1.5)
    assert distance() > 1e-4


def test_questions_are_answered_with_the_head_of_the_checkpoint(lerobot):
    pair = lerobot("pi0")
    policy = pair.start()
    tensors = load_file(pair.folder / "model.safetensors")
    assert not torch.equal(tensors[HEAD], tensors[EMBEDDING])  # LeRobot keeps two, and fine-tuning moves one
    assert torch.equal(policy.backbone.vlm.lm_head.weight, tensors[HEAD])
    assert torch.equal(policy.backbone.vlm.get_input_embeddings().weight, tensors[EMBEDDING])
    answers = policy.vlm.answer(make_samples(3), max_new_tokens=4)
    assert any(answers)
    assert load_vlm(str(pair.folder)).answer(make_samples(3), max_new_tokens=4) == answers


@pytest.mark.parametrize("kept", [HEAD, EMBEDDING])
def test_a_checkpoint_with_one_of_two_tied_tensors_has_a_tied_head(lerobot, kept):
    pair = lerobot("pi0")
    tensors = load_file(pair.folder / "model.safetensors")
    dropped = EMBEDDING if kept == HEAD else HEAD
    # as openpi's weights come: without the wrapper's name
    rest = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != dropped}
    save_file(rest, pair.folder / "model.safetensors")
    vlm = pair.start().backbone.vlm
    assert vlm.lm_head.weight is vlm.get_input_embeddings().weight
    assert torch.equal(vlm.lm_head.weight, tensors[kept])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_lerobot_train_starts_from_it_and_resumes_without_it(family, dataset, tmp_path, monkeypatch):  # noqa: F811
    processor, folder, out = tmp_path / "paligemma", tmp_path / "start", tmp_path / "run"
    vocabulary = paligemma_processor(processor)
    shrink(monkeypatch, processor, vocabulary=vocabulary)
    save_policy(folder, family)
    options = [
        "--policy.type=aegis_vla",
        f"--policy.init_from={folder}",
        "--policy.projection=subspace",  # distillation would load the VLM as it was once more
        "--policy.n_action_steps=2",
        "--policy.anchor_samples=12",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/random",
        f"--dataset.root={dataset}",
        f"--output_dir={out}",
        "--steps=4",
        "--batch_size=3",
        "--save_freq=2",
        "--log_freq=1",
        "--num_workers=0",
        "--env_eval_freq=0",
    ]
    text = lerobot_train(*options, before=partial(shrink, pytest.MonkeyPatch(), processor, vocabulary=vocabulary))
    log = losses(text)
    assert set(log) == {1, 2, 3, 4}
    assert "closed_share" in text
    weights = load_file(out / "checkpoints" / "000004" / "pretrained_model" / "model.safetensors")
    shutil.rmtree(folder)
    shutil.rmtree(out / "checkpoints" / "000004")
    (out / "checkpoints" / "last").unlink()
    (out / "checkpoints" / "last").symlink_to("000002")
    config = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    # LeRobot's own sizes again: nothing of its pi0 is asked any more
    resumed = losses(lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={out}"))
    assert resumed == {step: text for step, text in log.items() if step > 2}
    again = load_file(out / "checkpoints" / "000004" / "pretrained_model" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert AegisVLAPolicy.from_pretrained(out / "checkpoints" / "000004" / "pretrained_model").anchor.samples == 12
