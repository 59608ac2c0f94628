"""Reading one sample of a dataset, with its chunk of actions, from images and from video.

    python benchmarks/reading.py [--image-size 96] [--chunks 1,8,16,50] [--episodes 12] [--rounds 5]

Both datasets are the same recording of aegis-record. LeRobot 0.6.1 fetches a chunk's actions as whole rows, and with
each row it decodes the row's images, only to leave them away (huggingface/lerobot issues 2895 and 4392; mended after
0.6.1). Rows of a video dataset hold no images, and the one that is wanted is decoded from the video.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from measure import Table, interleave, make_parser, milliseconds, parse, ratio, report, seconds

from aegis_envs.record import main as record

SAMPLES = 64  # of a round and arm
KINDS = ("images", "video")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    chunks = [int(chunk) for chunk in options.chunks.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        roots = {kind: Path(folder) / kind for kind in KINDS}
        for kind, root in roots.items():
            command = [f"--root={root}", f"--episodes={options.episodes}", f"--image-size={options.image_size}"]
            record([*command, *(["--video"] if kind == "video" else [])])
        arms = {
            f"{kind}, chunk {chunk}": partial(seconds, _reader(root, chunk), options)
            for chunk in chunks
            for kind, root in roots.items()
        }
        times = interleave(arms, rounds=options.rounds)
        sizes = {
            kind: sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) / 2**20
            for kind, root in roots.items()
        }
    rows = [
        [
            name,
            milliseconds([one / SAMPLES for one in times[name]]),
            ratio(times[name], times[name.replace("video", "images")]),
        ]
        for name in arms
    ]
    title = (
        f"{options.episodes} episodes at {options.image_size} pixels, {sizes['images']:.1f} MiB as images and "
        f"{sizes['video']:.1f} as video, {SAMPLES} samples a round, {options.rounds} rounds."
    )
    report([Table(title, ("arm", "ms a sample", "over images'"), rows)], options, seconds=times, mib=sizes)


def _reader(root: Path, chunk: int):
    fps = LeRobotDataset("local/reading", root=root).fps
    dataset = LeRobotDataset("local/reading", root=root, delta_timestamps={"action": [i / fps for i in range(chunk)]})
    draw = random.Random(0)

    def read() -> None:
        for index in draw.choices(range(len(dataset)), k=SAMPLES):
            dataset[index]

    return read


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__file__, __doc__, rounds=5)
    parser.add_argument("--image-size", type=int, default=96, help="pixels of a side")
    parser.add_argument("--chunks", default="1,8,16,50", help="lengths of the chunk of actions")
    parser.add_argument("--episodes", type=int, default=12, help="of the recording")
    return parse(parser, arguments)


if __name__ == "__main__":
    main()
