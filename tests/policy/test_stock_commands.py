"""Stock lerobot-train on a small dataset and backbone: it trains, resumes exactly, and what it saves acts the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.forked import OFFLINE, run_command

pytestmark = pytest.mark.slow

JOINTS = [f"joint{i}.pos" for i in range(6)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "dataset"
    vector = {"dtype": "float32", "shape": (6,), "names": JOINTS}
    features = {
        "observation.images.front": {"dtype": "image", "shape": (48, 48, 3), "names": ["height", "width", "channels"]},
        "observation.state": vector,
        "action": vector,
    }
    data = LeRobotDataset.create("local/random", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for episode in range(3):
        for _ in range(7):
            data.add_frame(
                {
                    "observation.images.front": rng.integers(0, 256, (48, 48, 3), dtype=np.uint8),
                    "observation.state": rng.normal(size=6).astype(np.float32),
                    "action": rng.normal(size=6).astype(np.float32),
                    "task": f"touch thing {episode}",
                }
            )
        data.save_episode()
    data.finalize()
    return root


def lerobot_train(*arguments: str, before: Callable[[], object] | None = None) -> str:
    return output(run_command("lerobot-train", *arguments, before=before))


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(log: str) -> dict[int, str]:
    """Step -> what was logged of it, without times and without what the log says of the step before it."""
    found = re.findall(r"step:(\d+) .*?(loss:\S+).*?(grdn:\S+).*?(flow_loss:.*?)(?: energy_shed.*)?\n", log)
    return {int(step): " ".join(rest) for step, *rest in found}


@pytest.fixture(scope="module")
def finished(dataset, tiny_folder, tmp_path_factory) -> tuple[Path, str]:
    """Output folder and log of an uninterrupted run of eight steps with a checkpoint after four."""
    out = tmp_path_factory.mktemp("run") / "run"
    log = lerobot_train(
        "--policy.type=aegis_vla",
        f"--policy.backbone={tiny_folder['paligemma2']}",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=2",
        "--dataset.repo_id=local/random",
        f"--dataset.root={dataset}",
        f"--output_dir={out}",
        "--steps=8",
        "--batch_size=3",
        "--save_freq=4",
        "--log_freq=1",
        "--num_workers=0",
        "--env_eval_freq=0",
    )
    return out, log


def test_the_log_has_loss_distance_and_projection_at_every_step(finished):
    _, log = finished
    assert set(losses(log)) == set(range(1, 9))
    for name in (
        "flow_loss",
        "anchor_distance",
        "anchor_distance_02",
        "energy_shed",
        "projected_share",
        "closed_share",
    ):
        assert f"{name}:" in log


def test_a_resumed_run_has_the_losses_and_the_weights_of_the_uninterrupted_one(finished, tmp_path):
    out, log = finished
    weights = load_file(out / "checkpoints" / "000008" / "pretrained_model" / "model.safetensors")
    killed = tmp_path / "killed"
    shutil.copytree(out, killed, symlinks=True)
    shutil.rmtree(killed / "checkpoints" / "000008")
    (killed / "checkpoints" / "last").unlink()
    (killed / "checkpoints" / "last").symlink_to("000004")
    config = killed / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    resumed = losses(lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={killed}"))
    assert resumed == {step: text for step, text in losses(log).items() if step > 4}
    again = load_file(killed / "checkpoints" / "000008" / "pretrained_model" / "model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_two_processes_of_accelerate_train_log_once_and_save_a_policy_that_loads(dataset, tiny_folder, tmp_path):
    out = tmp_path / "ranks"
    scripts = Path(sys.executable).parent
    command = [
        # On a CPU too: with --cpu accelerate starts a single process.
        *(str(scripts / "accelerate"), "launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"),
        str(scripts / "lerobot-train"),
        "--policy.type=aegis_vla",
        f"--policy.backbone={tiny_folder['paligemma2']}",
        "--policy.projection=update",
        "--policy.probe_freq=4",
        "--policy.probe_count=1",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=2",
        "--dataset.repo_id=local/random",
        f"--dataset.root={dataset}",
        f"--output_dir={out}",
        "--steps=7",  # the sixth takes the 21st frame alone, which accelerate fills up
        "--batch_size=2",
        "--log_freq=1",
        "--num_workers=0",
        "--env_eval_freq=0",
    ]
    log = output(subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OFFLINE}, check=False))
    assert "Effective batch size: 2 x 2 = 4" in log
    found = losses(log)
    assert sorted(found) == list(range(1, 8))
    assert all("anchor_distance_02" in text for text in found.values())
    assert log.count('aegis {"step": 0,') == log.count('aegis {"step": 4,') == 1  # one process asks
    policy = AegisVLAPolicy.from_pretrained(out / "checkpoints" / "last" / "pretrained_model")
    assert policy.progress.training_steps == 7
    state = json.loads((out / "checkpoints" / "last" / "training_state" / "training_step.json").read_text())
    assert state == {"step": 7, "num_processes": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def adapted(dataset, tiny_folder, tmp_path_factory) -> tuple[Path, str]:
    """Output folder and log of protected adapters, averaged, trained for four steps with a checkpoint after two."""
    out = tmp_path_factory.mktemp("lora") / "run"
    log = lerobot_train(
        "--policy.type=aegis_vla",
        f"--policy.backbone={tiny_folder['paligemma2']}",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.ema_decay=0.5",
        "--policy.reference_every=1",
        "--policy.optimizer_backbone_lr=1e-2",
        "--policy.optimizer_vision_lr=1e-5",
        "--peft.method_type=LORA",
        "--peft.r=4",
        "--dataset.repo_id=local/random",
        f"--dataset.root={dataset}",
        f"--output_dir={out}",
        "--steps=4",
        "--save_freq=2",
        "--log_freq=1",
        "--batch_size=3",
        "--num_workers=0",
        "--env_eval_freq=0",
    )
    return out, log


def test_protected_adapters_are_lerobots_own_and_their_checkpoint_loads(adapted, dataset, tiny_folder):
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies.factory import make_policy

    from aegis_policy.answering import load_vlm

    out, log = adapted
    assert set(losses(log)) == set(range(1, 5)) and "closed_share:" in log
    folder = out / "checkpoints" / "last" / "pretrained_model"
    trained = load_file(folder / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in trained.items())
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/random", root=dataset))
    loaded = {name.replace(".default", ""): p for name, p in policy.named_parameters() if "lora_" in name}
    assert len(loaded) == 2 * 7 * 3
    for name, p in loaded.items():
        assert torch.equal(p, trained[name])
    projectors = policy.get_base_model()._protection.projectors()  # refuses adapters outside of the open directions
    assert len(projectors) == 7 * 3

    def difference(vlm) -> float:
        untouched = load_vlm(str(tiny_folder["paligemma2"])).model
        name = next(n for n, m in untouched.named_modules() if n.endswith("language_model.layers.1.self_attn.q_proj"))
        x = torch.ones(1, untouched.get_submodule(name).in_features)
        return (vlm.model.get_submodule(name)(x) - untouched.get_submodule(name)(x)).abs().max().item()

    assert difference(load_vlm(str(folder))) > 0
    assert difference(load_vlm(str(folder), adapters=False)) == 0
    with pytest.raises(ValueError, match="no adapters"):
        load_vlm(str(tiny_folder["paligemma2"]), adapters=False)


def test_resumed_adapters_have_the_losses_the_weights_and_the_state_of_the_uninterrupted_run(adapted, tmp_path):
    out, log = adapted
    killed = tmp_path / "killed"
    shutil.copytree(out, killed, symlinks=True)
    shutil.rmtree(killed / "checkpoints" / "000004")
    (killed / "checkpoints" / "last").unlink()
    (killed / "checkpoints" / "last").symlink_to("000002")
    config = killed / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    resumed = losses(lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={killed}"))
    assert resumed == {step: text for step, text in losses(log).items() if step > 2}
    for file in ("pretrained_model/adapter_model.safetensors", "training_state/optimizer_state.safetensors"):
        whole, again = (load_file(run / "checkpoints" / "000004" / file) for run in (out, killed))
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[name], again[name]) for name in whole)
