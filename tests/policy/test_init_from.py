"""A policy that starts from LeRobot's pi0 or pi05 is that policy: the same actions, the same loss, the same gradient.

LeRobot's own code, made small (`tiny_lerobot`), says what is the same.
"""

import json
import shutil
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import make_pre_post_processors
from lerobot.policies.common.vla_utils import pad_vector
from torch import Tensor

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.network.backbone import Backbone
from aegis_policy.pretrained.families import FAMILIES as START_FAMILIES
from aegis_policy.pretrained.start import EXPERTS
from aegis_policy.pretrained.take_over import checkpoint_of
from tests.policy.tiny_lerobot import ACTION, CAMERAS, CHUNK, FAMILIES, PADDED, SAMPLES, Pair, raw_batch

# Both run in float32 through attention kernels that sum in another order, and rotary positions begin at 1 here, at 0
# there; a tensor in the wrong place changes the first digit.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def noise() -> Tensor:
    return torch.randn(SAMPLES, CHUNK, PADDED, generator=torch.Generator().manual_seed(2))


def their_chunk(pair: Pair, batch: dict) -> Tensor:
    pre, post = pair.pipelines()
    return post(pair.theirs.predict_action_chunk(pre(dict(batch)), noise=noise()))


def our_chunk(policy: AegisVLAPolicy, batch: dict) -> Tensor:
    pre, post = make_pre_post_processors(policy.config)
    return post(policy.predict_action_chunk(pre(dict(batch)), noise()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_observation_and_noise_give_the_same_actions_in_the_robots_units(lerobot, family):
    pair = lerobot(family)
    theirs, ours = their_chunk(pair, raw_batch()), our_chunk(pair.start(), raw_batch())
    assert ours.shape == (SAMPLES, CHUNK, ACTION)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def networks(policy: AegisVLAPolicy, pair: Pair) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
    """VLM and expert, ours beside theirs, with the same names inside."""
    both = pair.theirs.model.paligemma_with_expert
    return [
        (policy.backbone.vlm.model, both.paligemma.model),
        (policy.expert.decoder, both.gemma_expert.model),
    ]


def their_losses(pair: Pair, batch: dict, time: Tensor) -> Tensor:
    """Of LeRobot's network on LeRobot's own preparation of the batch, as its `forward` puts them together."""
    theirs = pair.theirs
    images, masks = theirs._preprocess_images(batch)
    text = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    state = (theirs.prepare_state(batch),) if theirs.name == "pi0" else ()
    actions = pad_vector(batch["action"], PADDED)
    return theirs.model.forward(images, masks, *text, *state, actions, noise(), time)[..., :ACTION]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_noise_and_time_give_the_same_loss_and_the_same_gradient(lerobot, family):
    pair = lerobot(family)
    policy = pair.start()
    time = torch.tensor([0.02, 0.4, 0.97])
    theirs = their_losses(pair, pair.pipelines()[0](raw_batch(training=True)), time).mean()
    batch = make_pre_post_processors(policy.config)[0](raw_batch(training=True))
    ours, _ = policy.forward(batch, noise(), time)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    theirs.backward()
    ours.backward()
    for own, other in networks(policy, pair):
        others = dict(other.named_parameters())
        reached = 0
        for name, parameter in own.named_parameters():
            gradient, expected = parameter.grad, others[name].grad
            if gradient is None:  # of the last layer's answer to the prefix; there, queries are a zero of one product
                assert expected is None or not expected.any()
                continue
            reached += 1
            scale = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected, atol=1e-5 * scale + 1e-7, rtol=1e-3)
        assert reached >= 3 * 7  # the linear maps of three layers


@pytest.mark.parametrize("family", FAMILIES)
def test_cameras_that_are_missing_or_empty_change_the_actions_here_as_there(lerobot, family):
    pair = lerobot(family, cameras=("base", "left", "right"), empty_cameras=1)
    full = their_chunk(pair, raw_batch(("base", "left", "right")))
    batch = raw_batch(("right", "base"))  # one camera less than the checkpoint has, in another order
    theirs = their_chunk(pair, batch)
    assert not torch.allclose(theirs, full, atol=1e-2)
    policy = pair.start(cameras=("right", "base", "empty_camera_0"))
    assert list(policy.config.image_features) == ["observation.images.base", "observation.images.right"]
    torch.testing.assert_close(our_chunk(policy, batch), theirs, **CLOSE)


@pytest.mark.parametrize("task", ["touch it\n", "touch_the\nblue one", "touch " * 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_instructions_are_written_and_cut_as_there(lerobot, family, task):
    pair = lerobot(family, tokenizer_max_length=48)
    theirs = pair.pipelines()[0](raw_batch(task=task))
    ours = make_pre_post_processors(pair.start().config)[0](raw_batch(task=task))
    images = len(CAMERAS) * 4
    mask = theirs["observation.language.attention_mask"]
    own_mask = ours["observation.vlm.attention_mask"][:, images:].bool()
    assert mask.sum() == own_mask.sum()
    assert torch.equal(
        ours["observation.vlm.input_ids"][:, images:][own_mask], theirs["observation.language.tokens"][mask]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_size_each_tensor_has_its_counterpart_of_the_same_shape(family):
    """No weights: both sides are built on the meta device, with LeRobot's own numbers."""
    config = FAMILIES[family][2](device="cpu")
    ported = START_FAMILIES[family]
    fixed = ported.fixes(config)
    network, _ = ported.lerobot()
    with torch.device("meta"):
        theirs = {name: tensor.shape for name, tensor in network(config).state_dict().items()}
        backbone = Backbone.build(json.loads(ported.vlm_config(config).to_json_string(use_diff=False)))
        expert = EXPERTS[fixed["time_conditioning"]](
            backbone,
            action_size=fixed["padded_action_size"],
            state_size=32 if family == "pi0" else 0,
            width_ratio=1.0,
            hidden_size=fixed["expert_hidden_size"],
            intermediate_size=fixed["expert_intermediate_size"],
        )
    ours = {ported.vlm_names() + name: tensor.shape for name, tensor in backbone.vlm.state_dict().items()}
    for name, tensor in expert.state_dict().items():
        start, other = next((a, b) for a, b in ported.expert_names().items() if name.startswith(a))
        ours[other + name.removeprefix(start)] = tensor.shape
    assert ours == {name: shape for name, shape in theirs.items() if not name.startswith(ported.unused_names())}


def test_weights_of_a_checkpoint_in_half_precision_are_taken_as_they_are(lerobot):
    pair = lerobot("pi0", dtype="bfloat16")
    policy = pair.start()
    both = pair.theirs.model.paligemma_with_expert
    kinds = set()
    for own, other in (
        (policy.backbone.vlm.model, both.paligemma.model),
        (policy.expert.decoder, both.gemma_expert.model),
    ):
        others = dict(other.named_parameters())
        for name, parameter in own.named_parameters():
            kinds.add(others[name].dtype)
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, others[name].float())
    assert kinds == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_rebuilds_and_trains_without_the_checkpoint_it_started_from(lerobot, family, tmp_path):
    pair = lerobot(family)
    policy = pair.start(knowledge="aegis", anchor_samples=12)
    before = our_chunk(policy, raw_batch())
    policy.save_pretrained(tmp_path / "saved")
    for pipeline in make_pre_post_processors(policy.config):
        pipeline.save_pretrained(tmp_path / "saved")
    shutil.rmtree(pair.folder)
    loaded = AegisVLAPolicy.from_pretrained(tmp_path / "saved")
    pre, post = make_pre_post_processors(loaded.config, pretrained_path=str(tmp_path / "saved"))
    assert torch.equal(post(loaded.predict_action_chunk(pre(raw_batch()), noise())), before)
    optimizer = loaded.config.get_optimizer_preset().build(loaded.get_optim_params())
    loaded.train()
    loss, _ = loaded.forward(pre(raw_batch(training=True)))
    loss.backward()
    optimizer.step()
    assert not torch.equal(post(loaded.predict_action_chunk(pre(raw_batch()), noise())), before)


def test_a_hub_id_stays_at_the_commit_that_it_was_first_loaded_from(lerobot, tmp_path, monkeypatch):
    pair = lerobot("pi0")
    first, second = "a" * 40, "b" * 40
    repository = tmp_path / "hub" / "models--someone--pi0"
    for commit in (first, second):
        shutil.copytree(pair.folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    policy = replace(pair, folder=PurePosixPath("someone/pi0")).start()
    assert policy.config.init_from_revision == first
    policy.save_pretrained(tmp_path / "saved")
    (repository / "refs" / "main").write_text(second)
    saved = PreTrainedConfig.from_pretrained(tmp_path / "saved")
    assert checkpoint_of(saved).file("config.json").parent.name == first
    assert pair.start().config.init_from_revision is None  # a folder has none
