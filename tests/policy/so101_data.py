"""A dataset as `lerobot-record` leaves it after an SO-101: two cameras, six joints, 30 frames a second."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = [f"{joint}.pos" for joint in JOINTS]
DEGREES = ((-45.0, 60.0), (-103.0, 40.0), (-60.0, 97.0), (20.0, 90.0), (-15.0, 20.0), (1.5, 60.0))
PERCENT = ((-41.0, 54.0), (-100.0, 40.0), (-62.0, 100.0), (21.0, 94.0), (-9.0, 12.0), (1.5, 60.0))  # clipped
RADIANS = (*((low / 57.3, high / 57.3) for low, high in DEGREES[:-1]), (0.015, 0.6))
SIZES = {"front": (480, 640), "wrist": (480, 640)}


def record(
    root: Path,
    *,
    cameras: dict[str, tuple[int, int]] = SIZES,
    ranges: tuple[tuple[float, float], ...] = DEGREES,
    names: list[str] | None = None,
    fps: int = 30,
    video: bool = False,
    episodes: int = 2,
    frames: int = 12,
) -> LeRobotDataset:
    """Joints sweep their ranges, actions are a frame ahead, and a square on a table moves with the first of them."""
    names = NAMES[: len(ranges)] if names is None else names
    vector = {"dtype": "float32", "shape": (len(ranges),), "names": names}
    image = {"dtype": "video" if video else "image", "names": ["height", "width", "channels"]}
    features = {f"observation.images.{name}": {**image, "shape": (*size, 3)} for name, size in cameras.items()}
    features |= {"observation.state": vector, "action": dict(vector)}
    data = LeRobotDataset.create(
        "local/so101", fps=fps, features=features, root=root, use_videos=video, robot_type="so101_follower"
    )
    low, high = np.array(ranges, dtype=np.float32).T
    for episode in range(episodes):
        sweep = np.linspace(0, 1, frames + 1, dtype=np.float32)
        for now, ahead in pairwise(sweep):
            data.add_frame(
                {
                    **{f"observation.images.{key}": _picture(size, now) for key, size in cameras.items()},
                    "observation.state": low + now * (high - low),
                    "action": low + ahead * (high - low),
                    "task": f"put the cube in box {episode}",
                }
            )
        data.save_episode()
    data.finalize()
    return LeRobotDataset("local/so101", root=root)


def _picture(size: tuple[int, int], place: float) -> np.ndarray:
    picture = np.full((*size, 3), 150, dtype=np.uint8)
    side, left = size[0] // 5, int(place * (size[1] - size[0] // 5))
    picture[side : 2 * side, left : left + side] = (200, 30, 30)
    return picture
