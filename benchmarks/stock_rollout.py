"""Runs LeRobot's own lerobot-rollout on the simulated SO-101 inside this process: start-up is paid once."""

import json
import sys
import tempfile
from pathlib import Path

from lerobot.configs import PreTrainedConfig
from lerobot.scripts.lerobot_rollout import main
from lerobot.utils.import_utils import register_third_party_plugins

TICK_HZ = 30
POLICY_HZ = 10  # what the policy's actions are apart in its demonstrations


def rollout(checkpoint: str, instruction: str, *options: str) -> dict:
    """The robot's report of `lerobot-rollout OPTIONS`, with actions interpolated to 30 a second."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            "lerobot-rollout",
            f"--policy.path={checkpoint}",
            "--robot.type=aegis_so101_sim",
            f"--robot.instruction={instruction}",
            f"--robot.report={report}",
            f"--task={instruction}",
            f"--fps={POLICY_HZ}",
            f"--interpolation_multiplier={TICK_HZ // POLICY_HZ}",
            "--play_sounds=false",
            *options,
        ]
        own, sys.argv = sys.argv, command  # LeRobot's commands read their arguments from there
        try:
            main()
        finally:
            sys.argv = own
        return json.loads(report.read_text())


def engines(checkpoint: str) -> dict[str, list[str]]:
    """Options of both ways to infer; real-time chunking holds on to, and waits for, half a chunk."""
    register_third_party_plugins()
    half = PreTrainedConfig.from_pretrained(checkpoint).chunk_size // 2
    rtc = ["--inference.type=rtc", f"--inference.rtc.execution_horizon={half}", f"--inference.queue_threshold={half}"]
    return {"sync": ["--inference.type=sync"], "rtc": rtc}
