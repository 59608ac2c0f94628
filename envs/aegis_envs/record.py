"""`aegis-record`: scripted experts -> a LeRobotDataset.

Episode k of a recording depends on the seed and k alone, so a recording that was interrupted goes on exactly where it
was, and one that was killed while a file was open is made again from its options.
"""

import argparse
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import datasets
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aegis_envs import choose_gl_backend
from aegis_envs.units import FEATURE_NAMES

RECORD_FILE = "aegis_recording.json"  # beside the data: how it was made and how far it is
ROBOT_TYPE = "so101_follower"


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `aegis-record`."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    try:
        record(options)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        raise SystemExit(f"aegis-record: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"\nInterrupted; what is recorded is in {options.root}. Go on with --resume.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-record",
        description="Scripted experts solve language-conditioned tasks with an SO-101 in MuJoCo; their successful "
        "episodes become a LeRobotDataset (v3, images) that lerobot-train reads.",
        epilog="Example: aegis-record --repo-id=local/touch --root=data/touch --task=touch --episodes=500 --seed=0",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--repo-id", default="local/tabletop", help="name of the dataset, owner/name")
    add("--root", type=Path, required=True, help="folder of the dataset; must not exist yet unless --resume")
    add("--task", default="touch", help="touch, push_to, lift, place, a comma-separated list, or all")
    add("--episodes", type=int, default=500, help="successful episodes to record, the tasks in turn")
    add("--seed", type=int, default=0, help="same seed and options, same dataset")
    add("--kinds", default="shown", help="objects asked for: shown, never_shown or all")
    add("--phrasings", default="shown", help="instructions: shown, never_shown, all, questions")
    add("--objects", type=int, default=3, help="graspable objects on the table, 2 to 5")
    add("--cameras", default="front", help="front, wrist or front,wrist")
    add("--image-size", type=int, default=96, help="pixels")
    add("--fps", type=int, default=10, help="control steps a second, 10 or 20")
    add(
        "--noise",
        type=float,
        default=2.0,
        help="standard deviation in degrees of a disturbance of each arm joint that is executed but not recorded, so "
        "that the data shows how to recover; 0 records undisturbed experts",
    )
    add("--video", action="store_true", help="store MP4 instead of images: smaller, slower to read on a CPU")
    add("--resume", action="store_true", help="go on with an interrupted recording of the same options")
    return parser


def record(options: argparse.Namespace) -> LeRobotDataset:
    """Records what is missing of a dataset. See `aegis-record --help` for the options.

    Raises:
        ValueError: If an option is not valid, or a resumed recording was made with other options.
        FileExistsError: If the folder exists and resuming was not asked for.
    """
    choose_gl_backend()
    from aegis_envs.base import TabletopEnv
    from aegis_envs.demonstrations import demonstrate
    from aegis_envs.kinematics import ArmKinematics
    from aegis_envs.tasks import parse_tasks

    if options.noise < 0:
        raise ValueError(f"--noise is a standard deviation in degrees and cannot be negative; got {options.noise}.")
    cameras = tuple(name.strip() for name in options.cameras.split(",") if name.strip())
    envs = [
        TabletopEnv(
            task.name,
            cameras=cameras,
            image_size=options.image_size,
            kinds=options.kinds,
            phrasings=options.phrasings,
            objects=options.objects,
            control_hz=options.fps,
        )
        for task in parse_tasks(options.task)
    ]
    dataset, log = _open(options, cameras)
    # One bar for each episode's images would drown ours; opening a dataset switches them on again.
    datasets.disable_progress_bars()
    kinematics = ArmKinematics()
    try:
        with _progress() as progress:
            bar = progress.add_task("recording", total=options.episodes, completed=dataset.num_episodes, failed=0)
            for episode in range(dataset.num_episodes, options.episodes):
                env = envs[episode % len(envs)]
                demonstration = demonstrate(env, kinematics, seed=options.seed, episode=episode, noise=options.noise)
                for frame in demonstration.frames:
                    dataset.add_frame(_dataset_frame(frame.observation, frame.action, demonstration.instruction))
                dataset.save_episode()
                log["failures"][env.task] = log["failures"].get(env.task, 0) + demonstration.failures
                progress.update(bar, advance=1, failed=sum(log["failures"].values()))
    finally:
        for env in envs:
            env.close()
        dataset.finalize()
        log["episodes"] = dataset.num_episodes
        log["state"] = "complete" if dataset.num_episodes >= options.episodes else "interrupted"
        _write_log(options.root, log)
    print(
        f"{dataset.num_episodes} episodes, {dataset.num_frames} frames in {options.root}; "
        f"{sum(log['failures'].values())} failed attempts of the experts left out."
    )
    return dataset


def _open(options: argparse.Namespace, cameras: tuple[str, ...]) -> tuple[LeRobotDataset, dict[str, Any]]:
    """A new dataset, or the one to go on with, and the log beside it."""
    root: Path = options.root
    made_with = _made_with(options)
    exists = root.exists() and any(root.iterdir())
    if exists and not options.resume:
        raise FileExistsError(
            f"{root} exists already, and recordings are not overwritten. Go on with it by --resume, choose another "
            "--root, or delete it."
        )
    if exists:
        log = _read_log(root, made_with)
        if log["state"] != "writing" and log["episodes"] > 0:
            dataset = LeRobotDataset.resume(options.repo_id, root=root)
            _write_log(root, {**log, "state": "writing"})
            return dataset, log
        print(f"Nothing in {root} can be read, as its files were left open: recording it again from the start.")
    if root.exists():
        shutil.rmtree(root)  # empty, or our own unreadable recording: LeRobot wants to make the folder
    dataset = LeRobotDataset.create(
        options.repo_id,
        fps=options.fps,
        features=_features(cameras, options.image_size, use_videos=options.video),
        root=root,
        robot_type=ROBOT_TYPE,
        use_videos=options.video,
    )
    log = {"options": made_with, "state": "writing", "episodes": 0, "failures": {}}
    _write_log(root, log)
    return dataset, log


def _made_with(options: argparse.Namespace) -> dict[str, Any]:
    """The options that decide what is in an episode."""
    left_out = {"root", "repo_id", "episodes", "resume"}
    return {name: value for name, value in vars(options).items() if name not in left_out}


def _read_log(root: Path, made_with: dict[str, Any]) -> dict[str, Any]:
    path = root / RECORD_FILE
    if not path.is_file():
        raise ValueError(f"{root} is no recording of aegis-record ({RECORD_FILE} is missing): choose another --root.")
    log: dict[str, Any] = json.loads(path.read_text())
    other = {k: v for k, v in log["options"].items() if made_with.get(k) != v}
    if other:
        raise ValueError(f"{root} was recorded with other options; resume with the same: {other}.")
    return log


def _write_log(root: Path, log: dict[str, Any]) -> None:
    (root / RECORD_FILE).write_text(json.dumps(log, indent=2) + "\n")


def _features(cameras: tuple[str, ...], image_size: int, *, use_videos: bool) -> dict[str, dict[str, Any]]:
    joints = {"dtype": "float32", "shape": (len(FEATURE_NAMES),), "names": list(FEATURE_NAMES)}
    image = {
        "dtype": "video" if use_videos else "image",
        "shape": (image_size, image_size, 3),
        "names": ["height", "width", "channels"],
    }
    return {ACTION: joints, OBS_STATE: dict(joints), **{f"{OBS_IMAGES}.{c}": dict(image) for c in cameras}}


def _dataset_frame(observation: dict[str, Any], action: Any, instruction: str) -> dict[str, Any]:
    images = {f"{OBS_IMAGES}.{camera}": image for camera, image in observation.get("pixels", {}).items()}
    return {ACTION: action, OBS_STATE: observation["agent_pos"], **images, "task": instruction}


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes, {task.fields[failed]} failed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )


def _interrupt() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
