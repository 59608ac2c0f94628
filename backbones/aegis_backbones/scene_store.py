"""Pre-training scenes, rendered once and kept on disk as arrays, so that training reads instead of drawing.

Legend: N scenes, M things at most (5, or 14 in crowded scenes).
"""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
from rich.progress import track

from aegis_backbones.renderer import Picture, SceneRenderer, draw_scene
from aegis_backbones.scenes import ALL_SHAPES, IMAGE_SIZE, MAX_CROWD, MAX_THINGS
from aegis_envs.objects import COLOURS

SHARD = 1000  # scenes a file: what an interruption can lose
COLOUR_INDEX = {name: i for i, name in enumerate(COLOURS)}
SHAPE_INDEX = {name: i for i, name in enumerate(ALL_SHAPES)}
NOTHING = -1  # fills the places of things that a scene does not have


class Scenes(NamedTuple):
    """Rendered scenes."""

    images: np.ndarray  # (N, 96, 96, 3) uint8
    colours: np.ndarray  # (N, M) int8, an index into COLOURS or NOTHING
    shapes: np.ndarray  # (N, M) int8, an index into ALL_SHAPES or NOTHING
    places: np.ndarray  # (N, M, 2) float32, centres (u, v)

    def take(self, indices: np.ndarray, *, mirrored: np.ndarray) -> "Scenes":
        """Some of the scenes, with left and right exchanged where `mirrored` (same length, bool) says so."""
        images, places = self.images[indices], self.places[indices].copy()
        images[mirrored] = images[mirrored][:, :, ::-1]
        places[mirrored, :, 0] = 1 - places[mirrored, :, 0]
        return Scenes(images, self.colours[indices], self.shapes[indices], places)

    def shifted(self, pixels: np.ndarray) -> "Scenes":
        """Each picture moved by `pixels` (N, 2), right and down; what leaves it is no longer among the things."""
        reach = int(np.abs(pixels).max(initial=0))
        wide = np.pad(self.images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        images, size = np.empty_like(self.images), self.images.shape[1]
        for i, (right, down) in enumerate(reach - pixels):
            images[i] = wide[i, down : down + size, right : right + size]
        places = self.places + (pixels / size).astype(np.float32)[:, None]
        gone = ((places < 0) | (places >= 1)).any(-1)
        return Scenes(images, np.where(gone, np.int8(NOTHING), self.colours), self.shapes, places)

    def objects(self, index: int) -> list[tuple[str, str, float, float]]:
        """What `questions.ask` needs to know about a scene."""
        return [
            (_COLOUR_NAMES[c], ALL_SHAPES[s], float(u), float(v))
            for c, s, (u, v) in zip(self.colours[index], self.shapes[index], self.places[index], strict=True)
            if c != NOTHING
        ]


_COLOUR_NAMES = list(COLOURS)


def load_scenes(folder: Path, *, split: str, seed: int, count: int, workers: int, crowded: bool = False) -> Scenes:
    """The first `count` scenes of a split; those that `folder` lacks are rendered into it, with a progress bar."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range((count + SHARD - 1) // SHARD)
    missing = [i for i in shards if not _path(folder, split, seed, crowded, i).exists()]
    render = partial(_render_shard, folder, split, seed, crowded)
    if missing and workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
            _exhaust(track(pool.map(render, missing), f"rendering {split} scenes", total=len(missing)))
    else:
        _exhaust(track(map(render, missing), f"rendering {split} scenes", total=len(missing), disable=not missing))
    parts = [np.load(_path(folder, split, seed, crowded, i)) for i in shards]
    return Scenes(*(np.concatenate([p[name] for p in parts])[:count] for name in Scenes._fields))


def as_arrays(pictures: Iterable[Picture], *, width: int) -> Scenes:
    """Pictures of up to `width` things each as one set of arrays."""
    pictures = list(pictures)
    images = np.stack([p.image for p in pictures])
    assert images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3)
    colours = np.full((len(pictures), width), NOTHING, np.int8)
    shapes = colours.copy()
    places = np.zeros((len(pictures), width, 2), np.float32)
    for i, picture in enumerate(pictures):
        for j, thing in enumerate(picture.seen):
            colours[i, j], shapes[i, j] = COLOUR_INDEX[thing.colour], SHAPE_INDEX[thing.shape]
            places[i, j] = thing.u, thing.v
    return Scenes(images, colours, shapes, places)


def _path(folder: Path, split: str, seed: int, crowded: bool, shard: int) -> Path:
    return folder / f"{split}{'-crowded' if crowded else ''}-{seed}-{shard:04d}.npz"


def _render_shard(folder: Path, split: str, seed: int, crowded: bool, shard: int) -> None:
    with SceneRenderer() as renderer:
        indices = range(shard * SHARD, (shard + 1) * SHARD)
        scenes = as_arrays(
            (draw_scene(renderer, split=split, seed=seed, index=i, crowded=crowded) for i in indices),
            width=MAX_CROWD if crowded else MAX_THINGS,
        )
    target = _path(folder, split, seed, crowded, shard)
    partial_file = target.with_suffix(f".{os.getpid()}.tmp")
    with partial_file.open("wb") as file:
        np.savez(file, **scenes._asdict())
    partial_file.replace(target)


def _end_with_parent() -> None:
    """Run in a worker: if its parent is killed it would go on rendering, beside the run that goes on from there."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _exhaust(iterable: Iterable[object]) -> None:
    for _ in iterable:
        pass
