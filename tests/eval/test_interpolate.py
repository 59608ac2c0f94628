"""Between the pre-trained backbone and the fine-tuned one: ends and middle, and what is refused."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from aegis_eval.interpolate import PREFIX, WEIGHTS, interpolate, main
from aegis_policy.network.backbone import Backbone


@pytest.fixture(scope="module")
def before() -> dict[str, torch.Tensor]:
    return Backbone.load("nano").vlm.state_dict()


@pytest.fixture
def checkpoint(before, tmp_path):
    """As a training leaves it, every weight of the backbone one more than before."""
    folder = tmp_path / "run" / "checkpoints" / "000010" / "pretrained_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"type": "aegis_vla", "backbone": "nano", "use_peft": false}')
    (folder / "train_config.json").write_text("{}")
    tensors = {PREFIX + name: (tensor + 1).clone() for name, tensor in before.items()}
    tensors |= {"expert.action_out.weight": torch.ones(2), "anchor_spec": torch.tensor([1], dtype=torch.uint8)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_backbone_goes_part_of_the_way_and_nothing_else_does(checkpoint, before, tmp_path, weight):
    interpolate(checkpoint, tmp_path / "out", weight=weight)
    written = load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in before.items():
        torch.testing.assert_close(written[PREFIX + name], tensor + weight)
    assert torch.equal(written["expert.action_out.weight"], torch.ones(2))
    assert written["anchor_spec"].tolist() == [1]
    assert (tmp_path / "out" / "train_config.json").is_file()


def test_the_command_finds_the_last_checkpoint_of_a_run(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(checkpoint.parents[2]), "--weight=0.5", f"--out={out}"]) == 0
    assert (out / WEIGHTS).is_file()
    assert main([str(checkpoint.parents[2]), "--weight=0.5", f"--out={out}"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([str(checkpoint.parents[2]), "--weight=0.5", f"--out={out}", "--overwrite"]) == 0


def test_the_command_knows_the_policy_in_an_interpreter_of_its_own(checkpoint, tmp_path):
    command = "import sys; from aegis_eval.interpolate import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(checkpoint), "--weight=0.5", f"--out={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_what_is_read_is_not_overwritten(checkpoint, tmp_path, capsys):
    run = shutil.copytree(checkpoint, tmp_path / "run" / "pretrained_model").parent
    for out in (run, run / "pretrained_model"):
        assert main([str(run / "pretrained_model"), f"--out={out}", "--overwrite"]) == 2
        assert "holds the checkpoint that is read" in " ".join(capsys.readouterr().err.split())
    assert (run / "pretrained_model" / "model.safetensors").is_file()


def test_what_is_no_share_or_no_whole_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="share"):
        interpolate(checkpoint, tmp_path / "out", weight=1.5)
    (checkpoint / WEIGHTS).rename(checkpoint / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapters"):
        interpolate(checkpoint, tmp_path / "out", weight=0.5)
