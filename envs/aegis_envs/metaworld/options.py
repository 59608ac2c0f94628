"""The environment's sizes and choices, checked without metaworld or MuJoCo."""

ACTION_SIZE, STATE_SIZE = 4, 4
FPS = 80  # of LeRobot's environment: 5 physics steps of 2.5 ms
FULL_SIZE = 480  # pixels of LeRobot's environment
SMALLEST = 48  # pixels
MAX_STEPS = 500  # after which Meta-World refuses to go on
RENDERINGS = ("fast", "shadows", "faithful")
OBS_TYPES = ("pixels_agent_pos", "pixels")


def check_options(*, image_size: int, rendering: str, episode_length: int, obs_type: str) -> None:
    """Raises a ValueError with the valid choices if an option of the environment is none of them."""
    if not SMALLEST <= image_size <= FULL_SIZE:
        raise ValueError(f"image_size must be {SMALLEST} to {FULL_SIZE} pixels; got {image_size}.")
    if rendering not in RENDERINGS:
        raise ValueError(f"rendering must be one of {', '.join(RENDERINGS)}; got {rendering!r}.")
    if not 1 <= episode_length <= MAX_STEPS:
        raise ValueError(f"episode_length must be 1 to {MAX_STEPS}, Meta-World's own limit; got {episode_length}.")
    if obs_type not in OBS_TYPES:
        raise ValueError(f"obs_type must be one of {', '.join(OBS_TYPES)}; got {obs_type!r}.")
