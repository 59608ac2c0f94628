"""The environment's names, sizes and choices, known and checked without gym-aloha or MuJoCo."""

from lerobot.utils.constants import OBS_IMAGES

# LeRobot's name of a task -> gym-aloha's, which is also what LeRobot's rollouts tell a policy: there is no sentence.
TASKS = {"AlohaTransferCube-v0": "transfer_cube", "AlohaInsertion-v0": "insertion"}
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
SIDES = ("left", "right")
NAMES = [
    f"{side}_{joint}" for side in SIDES for joint in _JOINTS
]  # of state and action, as published datasets have them
ARM_JOINTS = len(_JOINTS) - 1
FPS = 50  # control steps a second: 10 physics steps of 2 ms
MAX_STEPS = 400  # LeRobot's default
CAMERA = "top"
IMAGE_KEY = f"{OBS_IMAGES}.{CAMERA}"
FULL_SIZE = 480  # rows of LeRobot's image, which has 640 columns
SMALLEST = 48
RENDERINGS = ("fast", "shadows", "faithful")


def parse_tasks(text: str) -> tuple[str, ...]:
    """The tasks of a comma-separated list, each once, in its order.

    Raises:
        ValueError: If a name is no task, or there is none.
    """
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found or not set(found) <= set(TASKS):
        raise ValueError(f"task must be {' or '.join(TASKS)}, or both separated by a comma; got {text!r}.")
    return found


def width_of(image_size: int) -> int:
    """Columns of an image of so many rows."""
    return image_size * 4 // 3


def check_options(*, image_size: int, rendering: str) -> None:
    """Raises a ValueError with the valid choices if an option of the environment is none of them."""
    if not SMALLEST <= image_size <= FULL_SIZE or image_size % 3:
        raise ValueError(
            f"image_size is the image's height, {SMALLEST} to {FULL_SIZE} pixels and divisible by 3, as its width is "
            f"four thirds of it; got {image_size}."
        )
    if rendering not in RENDERINGS:
        raise ValueError(f"rendering must be one of {', '.join(RENDERINGS)}; got {rendering!r}.")
