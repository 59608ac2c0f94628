from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from PIL import Image

import aegis_policy.modeling_aegis_vla as modeling
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.references.answers import LONGEST
from aegis_policy.knowledge.sources import build_anchor
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.network.backbone import NANO, Backbone
from aegis_policy.network.prompt import load_processor
from aegis_policy.vqa import VQASample
from tests.policy.tiny_backbones import FAMILIES
from tests.policy.tiny_lerobot import Pair, paligemma_processor, save_policy, shrink


def make_samples(count: int, seed: int = 0) -> list[VQASample]:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(count):
        pixels = torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8).numpy()
        samples.append(VQASample((Image.fromarray(pixels),), f"question {i % 5}?", ("a",), "family"))
    return samples


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> "dict[str, Path]":
    """Family -> folder of a tiny checkpoint with its anchor beside it, made when first asked for."""

    class Folders(dict):
        def __missing__(self, family: str) -> Path:
            with torch.random.fork_rng():  # the same weights whichever test asks first, and nobody's numbers are drawn
                torch.manual_seed(1)  # with 0 the tiny Gemma 3 gives one answer to every question
                folder = FAMILIES[family](tmp_path_factory.mktemp(family))
                anchor = build_anchor(Backbone.load(str(folder)), load_processor(str(folder)), make_samples(12))
            anchor.save(folder / "anchor.safetensors")
            self[family] = folder
            return folder

    return Folders()


@pytest.fixture
def make_policy(tiny_folder):
    """Builds a small policy: `make_policy(family="paligemma2", cameras=1, state_size=5, **config)`, "nano" the embedded
    backbone."""

    def make(family: str = "paligemma2", *, cameras: int = 1, state_size: int = 5, **options) -> AegisVLAPolicy:
        features = {
            f"observation.images.camera{i}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 48, 64))
            for i in range(cameras)
        }
        if state_size:
            features["observation.state"] = PolicyFeature(type=FeatureType.STATE, shape=(state_size,))
        config = AegisVLAConfig(
            input_features=features,
            output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(4,))},
            device="cpu",
            **{"backbone": NANO if family == NANO else str(tiny_folder[family]), "chunk_size": 5, "n_action_steps": 3}
            | options,
        )
        return modeling.AegisVLAPolicy(config)

    return make


def make_batch(policy: AegisVLAPolicy, batch: int = 3, *, seed: int = 0, training: bool = True) -> dict:
    """A batch as lerobot-train's data loader gives it, through the policy's preprocessor."""
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    raw: dict = {
        key: torch.rand(batch, *feature.shape, generator=generator) for key, feature in config.image_features.items()
    }
    if config.robot_state_feature:
        raw["observation.state"] = torch.randn(batch, *config.robot_state_feature.shape, generator=generator)
    raw["task"] = [f"touch cube {'very ' * i}slowly" for i in range(batch)]
    size = config.action_feature.shape[0]
    if training:
        raw["action"] = torch.randn(batch, config.chunk_size, size, generator=generator)
        raw["action_is_pad"] = torch.zeros(batch, config.chunk_size, dtype=torch.bool)
    stats = {
        "observation.state": {"mean": torch.zeros(1), "std": torch.ones(1)},
        "action": {"mean": torch.zeros(size), "std": torch.ones(size)},
    }
    if config.robot_state_feature:
        width = config.robot_state_feature.shape[0]
        stats["observation.state"] = {"mean": torch.zeros(width), "std": torch.ones(width)}
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=stats)
    return preprocessor(raw)


@torch.no_grad()
def say(vlm: Any, prompt: dict, only: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """What `vlm` says, (A,), or is made to say; and the log-probabilities that it had at each token, (A, V)."""
    start = prompt["input_ids"].shape[1]
    options = {"max_new_tokens": LONGEST, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    if only is not None:
        options |= {
            "max_new_tokens": len(only),
            "prefix_allowed_tokens_fn": lambda _, ids: [int(only[len(ids) - start])],
        }
    said = vlm.generate(**prompt, **options)
    return said.sequences[0, start:], torch.cat(said.logits).log_softmax(-1)


def train(policy: AegisVLAPolicy, steps: int, *, batch: int = 3) -> list[float]:
    """The loop of lerobot-train in five lines; returns the losses."""
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    return take_steps(policy, optimizer, range(steps), batch=batch)


def take_steps(
    policy: AegisVLAPolicy, optimizer: torch.optim.Optimizer, steps: range, *, batch: int = 3
) -> list[float]:
    """Part of a training, on the batches of these steps; returns the losses."""
    losses = []
    policy.train()
    for step in steps:
        loss, _ = policy.forward(make_batch(policy, batch, seed=step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        losses.append(loss.item())
    return losses


@pytest.fixture
def lerobot(tmp_path, monkeypatch):
    """Makes a pair: `lerobot("pi0", **fields of its configuration)`."""
    vocabulary = paligemma_processor(tmp_path / "paligemma")
    shrink(monkeypatch, tmp_path / "paligemma", vocabulary=vocabulary)

    def make(family: str, **options: Any) -> Pair:
        folder = tmp_path / f"{family}{len(list(tmp_path.iterdir()))}"
        return Pair(save_policy(folder, family, **options), folder)

    return make
