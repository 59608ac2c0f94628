"""Images of the table: colour frames, and what each object covers in them.

A renderer holds an OpenGL context. It is made when the first image is asked for, in the process that asks (so that
worker processes of a vector environment never inherit one), and closed explicitly.
"""

import atexit
import os
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

_EXPENSIVE = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
)
_INVISIBLE = (mujoco.mjtRndFlag.mjRND_REFLECTION,)  # takes time, and no pixel of these suites shows it


class _Quality(NamedTuple):
    samples: int  # a pixel
    shadow_map: int  # texels a side


# How pictures of other people's suites are drawn; None leaves the model as it was made, 4 samples and 4096 texels.
_QUALITIES = {"fast": _Quality(0, 0), "shadows": _Quality(0, 1024), "faithful": None}


class Cameras:
    """Renders a model's cameras. State: one renderer an image size, none until it is needed.

    Args:
        model: Whose cameras; its `vis.quality` decides about multisampling and the shadow map.
        left_out: What is not drawn.
    """

    def __init__(self, model: mujoco.MjModel, *, left_out: Sequence[mujoco.mjtRndFlag] = _EXPENSIVE):
        self._model = model
        self._left_out = tuple(left_out)
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._option = mujoco.MjvOption()

    def frame(self, data: mujoco.MjData, camera: str, *, size: int | tuple[int, int]) -> NDArray[np.uint8]:
        """An RGB image (height, width, 3) of the camera; one number is both."""
        renderer = self._renderer(size if isinstance(size, tuple) else (size, size))
        self._update(renderer, data, camera)
        return renderer.render()

    def object_ids(self, data: mujoco.MjData, camera: str, *, size: int) -> NDArray[np.int32]:
        """The geom id (size, size) that each pixel shows, -1 for none."""
        renderer = self._renderer((size, size))
        renderer.enable_segmentation_rendering()
        try:
            self._update(renderer, data, camera)
            segmentation = renderer.render()  # (size, size, 2): object id, object type
        finally:
            renderer.disable_segmentation_rendering()
        is_geom = segmentation[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
        return np.where(is_geom, segmentation[..., 0], -1)

    def close(self) -> None:
        """Frees the OpenGL contexts. Images may be asked for again afterwards."""
        _close_all(self._renderers)

    def _renderer(self, size: tuple[int, int]) -> mujoco.Renderer:
        if size not in self._renderers:
            try:
                self._renderers[size] = mujoco.Renderer(self._model, *size)
            except mujoco.FatalError as error:
                raise RuntimeError(
                    "MuJoCo has no OpenGL to draw with. On a machine without a screen set MUJOCO_GL=egl (or osmesa) "
                    f"before Python starts; it is {os.environ.get('MUJOCO_GL')!r}."
                ) from error
            # For whoever forgets to close. Registered after MuJoCo's own exit handler, thus run before it ends EGL.
            atexit.register(_close_all, self._renderers)
        return self._renderers[size]

    def _update(self, renderer: mujoco.Renderer, data: mujoco.MjData, camera: str) -> None:
        renderer.update_scene(data, camera=camera, scene_option=self._option)
        for flag in self._left_out:
            renderer.scene.flags[flag] = 0


def _close_all(renderers: dict[tuple[int, int], mujoco.Renderer]) -> None:
    for renderer in renderers.values():
        renderer.close()
    renderers.clear()


def suite_cameras(model: mujoco.MjModel, rendering: str) -> Cameras:
    """Cameras of another suite's model, drawn `fast`, with `shadows` or `faithful` to it; changes its `vis.quality`."""
    quality = _QUALITIES[rendering]
    if quality is None:
        return Cameras(model, left_out=())
    model.vis.quality.offsamples = quality.samples  # MuJoCo reads it once, when it makes the OpenGL context
    model.vis.quality.shadowsize = quality.shadow_map
    return Cameras(model, left_out=_INVISIBLE)


def averaged(image: NDArray[np.uint8], samples: int) -> NDArray[np.uint8]:
    """Each square of `samples` x `samples` pixels of an image (height, width, 3) as one."""
    if samples == 1:
        return image
    height, width = image.shape[0] // samples, image.shape[1] // samples
    squares = image.reshape(height, samples, width, samples, 3)
    return np.round(squares.mean(axis=(1, 3))).astype(np.uint8)


def project(model: mujoco.MjModel, data: mujoco.MjData, camera: str, point: NDArray[np.float64]) -> tuple[float, float]:
    """Where a point (3,) in metres is in a camera's square image: (u, v) in [0, 1], v downwards."""
    view = data.camera(camera)
    x, y, z = view.xmat.reshape(3, 3).T @ (point - view.xpos)  # camera frame: x right, y up, -z forward
    focal = 0.5 / np.tan(np.radians(model.camera(camera).fovy[0]) / 2)
    return float(0.5 - focal * x / z), float(0.5 + focal * y / z)
