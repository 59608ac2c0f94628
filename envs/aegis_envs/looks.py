"""Writes an episode's light, table, cameras and dynamics into a compiled model: no recompilation, no new renderer.

Textures are made with the model, in greys of mean 1 that a colour multiplies, since a renderer takes them over once; an
episode chooses among them.
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

from aegis_envs.randomization import TABLE_PATTERNS, Dynamics, Lights, Randomization, Table, View

_PIXELS = 256  # of a texture, each way


def add_table_patterns(spec: mujoco.MjSpec) -> None:
    """Adds the materials `table_0`, ... to a model that is to be compiled."""
    for number in range(TABLE_PATTERNS):
        name = pattern_name(number)
        texture = spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=_PIXELS, height=_PIXELS, nchannel=3
        )
        grey = np.round(255 * _pattern(number)).astype(np.uint8)
        texture.data = np.repeat(grey[..., None], 3, axis=2).tobytes()
        material = spec.add_material(name=name, texuniform=True, specular=0.1)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def pattern_name(number: int) -> str:
    """Name of a pattern's material and texture."""
    return f"table_{number}"


def _pattern(number: int) -> NDArray[np.float64]:
    """(256, 256) in [0, 1], the same in every process: plain, boards, a checked cloth, weave, speckles, stains."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:_PIXELS, 0:_PIXELS] / _PIXELS
    flat = np.full((_PIXELS, _PIXELS), 0.85)
    if number == 0:
        return flat
    if number == 1:
        grain = np.sin(2 * np.pi * (24 * y + 0.6 * np.sin(2 * np.pi * x) + 0.4 * np.sin(6 * np.pi * x)))
        return flat + 0.08 * grain - 0.2 * (np.abs(y * 4 % 1) < 0.03)
    if number == 2:
        return np.where((np.floor(8 * x) + np.floor(8 * y)) % 2 == 0, 1.0, 0.7)
    if number == 3:
        return flat + 0.12 * np.sin(32 * np.pi * x) * np.sin(32 * np.pi * y)
    if number == 4:
        return np.clip(flat + rng.normal(0, 0.09, flat.shape), 0, 1)
    waves = sum(
        rng.normal() * np.cos(2 * np.pi * (rng.integers(1, 7) * x + rng.integers(-6, 7) * y) + rng.uniform(0, 6.28))
        for _ in range(12)
    )
    return np.clip(flat + 0.05 * np.asarray(waves), 0, 1)


class Looks:
    """A model's nominal light, cameras and friction, to begin each episode from."""

    def __init__(self, model: mujoco.MjModel):
        self._model = model
        head = model.vis.headlight
        self._lamp = model.light_dir[0].copy(), model.light_diffuse[0].copy()
        self._head = head.ambient.copy(), head.diffuse.copy()
        self._cameras = {
            name: (model.camera(name).pos.copy(), model.camera(name).quat.copy(), float(model.camera(name).fovy[0]))
            for name in ("front", "wrist")
        }
        self._friction = model.geom_friction.copy()
        self._things = [model.geom(i).name.startswith(("object_", "table")) for i in range(model.ngeom)]

    def write(self, randomization: Randomization) -> None:
        """Writes what is drawn; kinds that are not stay as the model was made, or as they were written before."""
        if randomization.lights:
            self._write_lights(randomization.lights)
        if randomization.textures:
            self._write_table(randomization.textures)
        if randomization.camera:
            self._write_view("front", randomization.camera.front)
            self._write_view("wrist", randomization.camera.wrist)
        if randomization.dynamics:
            self._write_friction(randomization.dynamics)

    def _write_lights(self, lights: Lights) -> None:
        direction, diffuse = self._lamp
        level = np.hypot(direction[0], direction[1])
        azimuth = np.arctan2(direction[1], direction[0]) + np.radians(lights.azimuth)
        elevation = np.arctan2(-direction[2], level) + np.radians(lights.elevation)
        self._model.light_dir[0] = (
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            -np.sin(elevation),
        )
        tint = np.array(lights.tint)
        self._model.light_diffuse[0] = diffuse * lights.strength * tint
        ambient, head = self._head
        self._model.vis.headlight.ambient = ambient * lights.ambient * tint
        self._model.vis.headlight.diffuse = head * lights.ambient * tint

    def _write_table(self, table: Table) -> None:
        material, geom = self._model.material(pattern_name(table.pattern)).id, self._model.geom("table").id
        self._model.geom_matid[geom] = material
        self._model.geom_rgba[geom, :3] = table.colour
        self._model.mat_texrepeat[material] = table.repeat

    def _write_view(self, name: str, view: View) -> None:
        position, quaternion, field = self._cameras[name]
        camera = self._model.camera(name)
        shift, turn, turned = np.zeros(3), np.zeros(4), np.zeros(4)
        mujoco.mju_rotVecQuat(shift, np.array(view.shift), quaternion)
        angle = np.radians(view.turn)
        size = float(np.linalg.norm(angle))
        mujoco.mju_axisAngle2Quat(turn, angle / size if size else np.array([1.0, 0.0, 0.0]), size)
        mujoco.mju_mulQuat(turned, quaternion, turn)
        camera.pos, camera.quat, camera.fovy = position + shift, turned, field * view.field

    def _write_friction(self, dynamics: Dynamics) -> None:
        # A contact has the larger of two frictions, and with the jaws' boxes, which have priority, theirs.
        jaws = self._model.geom_priority > 0
        self._model.geom_friction[:, 0] = self._friction[:, 0]
        self._model.geom_friction[self._things, 0] *= dynamics.friction
        self._model.geom_friction[jaws, 0] *= dynamics.grip
