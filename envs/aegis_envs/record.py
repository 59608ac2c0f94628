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
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES, OBS_STATE
from tqdm import tqdm

from aegis_envs import choose_gl_backend
from aegis_envs.demonstrator import Demonstrator
from aegis_envs.recordable import RECORDABLE, TABLETOP, Recordable, find_recordable

RECORD_FILE = "aegis_recording.json"  # beside the data: how it was made and how far it is


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `aegis-record`."""
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    options: argparse.Namespace | None = None
    try:
        options = parse_options(arguments)
        record(options)
    except (ValueError, FileExistsError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"aegis-record: {error}") from error
    except KeyboardInterrupt:
        place = "" if options is None else f"; what is recorded is in {options.root}. Go on with --resume"
        raise SystemExit(f"\nInterrupted{place}.") from None


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's options: first which environment, then those that it has.

    Raises:
        ValueError: If there is no such environment.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_type(first)
    chosen, _ = first.parse_known_args(arguments)
    return _parser(find_recordable(chosen.env_type)).parse_args(arguments)


def _add_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env.type", dest="env_type", default=TABLETOP, help=f"what is recorded: {', '.join(RECORDABLE)}"
    )


def _parser(environment: Recordable) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-record",
        description="An environment's scripted experts solve language-conditioned tasks; their successful episodes "
        "become a LeRobotDataset (v3, images) that lerobot-train reads. Each --env.type has options of its own: "
        "aegis-record --env.type=metaworld --help.",
        epilog="Example: aegis-record --repo-id=local/touch --root=data/touch --task=touch --episodes=500 --seed=0",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,  # of --env.type, which the first look would not have understood
    )
    add = parser.add_argument
    _add_type(parser)
    add("--repo-id", default=environment.repo_id, help="name of the dataset, owner/name")
    add("--root", type=Path, required=True, help="folder of the dataset; must not exist yet unless --resume")
    add("--episodes", type=int, default=500, help="successful episodes to record, the tasks in turn")
    add("--seed", type=int, default=0, help="same seed and options, same dataset")
    environment.add_options(parser)
    add("--video", action="store_true", help="store MP4, not images: smaller, quicker to read where chunks are long")
    add("--resume", action="store_true", help="go on with an interrupted recording of the same options")
    return parser


def record(options: argparse.Namespace) -> LeRobotDataset:
    """Records what is missing of a dataset. See `aegis-record --help` for the options.

    Raises:
        ValueError: If an option is not valid, or a resumed recording was made with other options.
        FileExistsError: If the folder exists and resuming was not asked for.
        ImportError: If a package that the environment needs is missing.
    """
    choose_gl_backend()
    demonstrator = find_recordable(options.env_type).make(options)
    dataset, log = _open(options, demonstrator)
    # One bar for each episode's images would drown ours; opening a dataset switches them on again.
    datasets.disable_progress_bars()
    try:
        done = dataset.num_episodes
        with tqdm(total=options.episodes, initial=done, desc="Recording", unit="episode") as progress:
            for episode in range(done, options.episodes):
                task = demonstrator.tasks[episode % len(demonstrator.tasks)]
                demonstration = demonstrator.demonstrate(episode)
                for frame in demonstration.frames:
                    dataset.add_frame(_dataset_frame(frame.observation, frame.action, demonstration.instruction))
                dataset.save_episode()
                log["failures"][task] = log["failures"].get(task, 0) + demonstration.failures
                if demonstration.randomization:
                    log.setdefault("randomization", []).append(demonstration.randomization)
                progress.set_postfix(failed=sum(log["failures"].values()), refresh=False)
                progress.update()
    finally:
        demonstrator.close()
        dataset.finalize()
        log["episodes"] = dataset.num_episodes
        log["state"] = "complete" if dataset.num_episodes >= options.episodes else "interrupted"
        _write_log(options.root, log)
    print(
        f"{dataset.num_episodes} episodes, {dataset.num_frames} frames in {options.root}; "
        f"{failure_shares(log['failures'], tasks=demonstrator.tasks, episodes=dataset.num_episodes)}"
    )
    return dataset


def failure_shares(failures: dict[str, int], *, tasks: tuple[str, ...], episodes: int) -> str:
    """What the experts failed and was therefore left out, in words: of all attempts, and of each task that has some."""
    failed = sum(failures.values())
    parts = []
    for place, task in enumerate(tasks):
        recorded = len(range(place, episodes, len(tasks)))
        if failures.get(task):
            parts.append(f"{task} {failures[task] / (failures[task] + recorded):.1%}")
    share = f"{failed} of {failed + episodes} attempts of the experts failed and are left out"
    return f"{share} ({', '.join(parts)})." if parts else f"{share}."


def _open(options: argparse.Namespace, demonstrator: Demonstrator) -> tuple[LeRobotDataset, dict[str, Any]]:
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
        fps=demonstrator.fps,
        features=_stored_features(demonstrator.features, use_videos=options.video),
        root=root,
        robot_type=demonstrator.robot_type,
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
    # An option that came after the recording was made had no effect in it: as its default has none.
    parser = _parser(find_recordable(made_with["env_type"]))
    then = {name: parser.get_default(name) for name in made_with} | log["options"]
    other = {k: v for k, v in then.items() if made_with.get(k) != v}
    if other:
        raise ValueError(f"{root} was recorded with other options; resume with the same: {other}.")
    return log


def _write_log(root: Path, log: dict[str, Any]) -> None:
    (root / RECORD_FILE).write_text(json.dumps(log, indent=2) + "\n")


def _stored_features(features: dict[str, dict[str, Any]], *, use_videos: bool) -> dict[str, dict[str, Any]]:
    return {
        key: {**feature, "dtype": "video"} if use_videos and feature["dtype"] == "image" else feature
        for key, feature in features.items()
    }


def _dataset_frame(observation: dict[str, Any], action: Any, instruction: str) -> dict[str, Any]:
    """A frame under the names that LeRobot's rollouts give a policy: one camera without a name, or several with."""
    pixels = observation.get("pixels", {})
    if isinstance(pixels, dict):
        images = {f"{OBS_IMAGES}.{camera}": image for camera, image in pixels.items()}
    else:
        images = {OBS_IMAGE: pixels}
    state = observation["agent_pos"].astype(np.float32)
    return {ACTION: action, OBS_STATE: state, **images, "task": instruction}


def _interrupt() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
