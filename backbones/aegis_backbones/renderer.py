"""Scenes to pictures with MuJoCo, fast: one model for all scenes, whose geoms are moved, resized and recoloured.

Compiling a model per scene would cost more than the picture. A pool of geoms of the world body is enough, because
`mj_kinematics` reads a geom's type, size, pose and colour afresh. No multisampling and no shadow map: at 96 pixels a
frame costs well under a millisecond and a half on a CPU.
"""

import math
from typing import NamedTuple

import numpy as np

from aegis_backbones.scenes import IMAGE_SIZE, MAX_CLUTTER, MAX_CROWD, SPLIT_KEYS, Scene, Thing, sample_scene
from aegis_envs import choose_gl_backend

choose_gl_backend()  # MuJoCo decides when it is imported

import mujoco  # noqa: E402

GEOMETRIES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}
LIGHTS = 2
HIDDEN = 3  # a geom group that is not drawn
MIN_VISIBLE_PIXELS = 14
MIN_VISIBLE_SHARE = 0.7


class Seen(NamedTuple):
    """A named thing in a picture: its words and the place of its centre."""

    colour: str
    shape: str
    u: float  # 0 left, 1 right
    v: float  # 0 top, 1 bottom


class Picture(NamedTuple):
    """A rendered scene."""

    image: np.ndarray  # (96, 96, 3) uint8
    seen: tuple[Seen, ...]
    pixels: tuple[int, ...]  # visible pixels of each


def _model_xml(size: int) -> str:
    rng = np.random.default_rng(0)
    builtins = ["flat", "checker", "gradient", "checker", "flat", "flat"]
    textures, materials = [], []
    for i in range(18):
        builtin = builtins[i % len(builtins)]
        a, b = rng.uniform(0.75, 1.0, size=2)
        noise = 'mark="random" markrgb="{0} {0} {0}" random="0.{1:02d}"'.format(
            round(float(rng.uniform(0.4, 1.0)), 2), int(rng.integers(2, 30))
        )
        textures.append(
            f'<texture name="t{i}" type="2d" builtin="{builtin}" width="128" height="128" rgb1="{a:.2f} {a:.2f} '
            f'{a:.2f}" rgb2="{b:.2f} {b:.2f} {b:.2f}" {noise if i % 3 else ""}/>'
        )
        repeat = float(rng.uniform(1, 12))
        materials.append(
            f'<material name="m{i}" texture="t{i}" texrepeat="{repeat:.1f} {repeat:.1f}" texuniform="false"/>'
        )
    geoms = "".join(
        f'<geom name="g{i}" type="box" size=".1 .1 .1" pos="1 1 1" euler="10 20 30"/>'
        for i in range(MAX_CROWD + MAX_CLUTTER)
    )
    lights = "".join(f'<light name="l{i}" directional="true" castshadow="false"/>' for i in range(LIGHTS))
    return f"""
    <mujoco>
      <compiler angle="degree"/>
      <visual>
        <global offwidth="{size}" offheight="{size}"/>
        <quality offsamples="0" shadowsize="0"/>
        <map znear="0.01" zfar="50"/>
      </visual>
      <asset><texture type="skybox" builtin="gradient" rgb1=".7 .75 .8" rgb2=".45 .45 .45" width="64" height="384"/>
        {"".join(textures)}{"".join(materials)}<material name="thing"/></asset>
      <worldbody>
        <camera name="view" pos="1 0 1"/>{lights}
        <geom name="floor" type="box" size="6 6 .02" pos="0 0 -.7" euler="0 0 10"/>
        <geom name="table" type="box" size="1 1 .02" pos="0 0 -.02" euler="0 0 10"/>
        {geoms}
      </worldbody>
    </mujoco>"""


class SceneRenderer:
    """Draws scenes. State: a MuJoCo model whose pool of geoms shows the latest scene, and an offscreen renderer.

    Use it as a context manager, or call `close`: an EGL context that is left open complains at exit.
    """

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_string(_model_xml(IMAGE_SIZE))
        self._model.geom_sameframe[:] = 0  # poses change after compilation
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, height=IMAGE_SIZE, width=IMAGE_SIZE)
        self._segmenter = mujoco.Renderer(self._model, height=IMAGE_SIZE, width=IMAGE_SIZE)
        self._segmenter.enable_segmentation_rendering()
        self._options = mujoco.MjvOption()
        self._options.geomgroup[HIDDEN] = 0
        self._pool = [self._model.geom(f"g{i}").id for i in range(MAX_CROWD + MAX_CLUTTER)]
        self._surfaces = [i for i in range(self._model.nmat) if self._model.material(i).name != "thing"]
        for renderer in (self._renderer, self._segmenter):
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0

    def __enter__(self) -> "SceneRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the rendering contexts."""
        self._renderer.close()
        self._segmenter.close()

    def draw(self, scene: Scene) -> Picture | None:
        """The picture of a scene, or None if a named thing is hidden for the most part or hardly in the picture."""
        self._set_up(scene)
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        pixels = self._visible_pixels(scene)
        if any(
            p < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * _expected_pixels(scene, t))
            for p, t in zip(pixels, scene.named, strict=True)
        ):
            return None
        self._renderer.update_scene(self._data, "view", self._options)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = scene.sky
        image = self._renderer.render().copy()
        places, _ = scene.camera.project(np.array([t.position for t in scene.named]))
        seen = tuple(
            Seen(str(t.colour), str(t.shape), float(u), float(v)) for t, (u, v) in zip(scene.named, places, strict=True)
        )
        return Picture(image, seen, tuple(pixels))

    def _visible_pixels(self, scene: Scene) -> list[int]:
        self._segmenter.update_scene(self._data, "view", self._options)
        ids = self._segmenter.render()[..., 0]
        return [int((ids == self._pool[i]).sum()) for i in range(len(scene.named))]

    def _set_up(self, scene: Scene) -> None:
        model = self._model
        things = (*scene.named, *scene.clutter)
        for slot, geom in enumerate(self._pool):
            if slot < len(things):
                self._place(geom, things[slot])
            else:
                model.geom_group[geom] = HIDDEN
        thing_material = model.material("thing").id
        model.mat_specular[:] = 0.3 * scene.shininess
        model.mat_specular[thing_material] = scene.shininess
        for name, rgb, texture in (
            ("table", scene.table_rgb, scene.table_texture),
            ("floor", scene.floor_rgb, scene.floor_texture),
        ):
            geom = model.geom(name).id
            model.geom_matid[geom] = self._surfaces[texture % len(self._surfaces)]
            model.geom_rgba[geom] = [*rgb, 1.0]
        model.geom_size[model.geom("table").id] = [*scene.table_half, 0.02]
        self._aim(scene)
        for i in range(LIGHTS):
            model.light_active[i] = i < len(scene.lights)
            if i < len(scene.lights):
                light = scene.lights[i]
                model.light_dir[i], model.light_diffuse[i] = light.direction, light.diffuse
                model.light_specular[i] = light.specular
                model.light_ambient[i] = 0.0
                model.light_pos[i] = -2.0 * light.direction
        model.vis.headlight.ambient[:] = scene.ambient
        model.vis.headlight.diffuse[:] = scene.headlight
        model.vis.headlight.specular[:] = 0.0

    def _place(self, geom: int, thing: Thing) -> None:
        model = self._model
        model.geom_type[geom] = GEOMETRIES[thing.geometry]
        model.geom_group[geom] = 0
        model.geom_size[geom] = thing.size
        model.geom_pos[geom], model.geom_quat[geom] = thing.position, thing.quaternion
        model.geom_matid[geom] = model.material("thing").id
        model.geom_rgba[geom] = [*thing.rgb, 1.0]

    def _aim(self, scene: Scene) -> None:
        camera = scene.camera
        matrix = np.stack([camera.right, camera.up, camera.back], axis=1)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, matrix.ravel())
        self._model.cam_pos[0], self._model.cam_quat[0] = camera.position, quaternion
        self._model.cam_fovy[0] = math.degrees(camera.fovy)


def _expected_pixels(scene: Scene, thing: Thing) -> float:
    """The area of an unhidden body's picture, from the outline of its corner points (a polygon's convex hull)."""
    uv, _ = scene.camera.project(_corners(thing))
    return _hull_area(uv * IMAGE_SIZE)


def _corners(thing: Thing) -> np.ndarray:
    """Points (N, 3) of the surface whose convex hull is the body, or nearly."""
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, thing.quaternion)
    if thing.geometry == "box":
        local = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * thing.size
    elif thing.geometry == "sphere":
        local = _ICOSPHERE * thing.size[0]
    else:
        radius, half = thing.size[:2]
        ring = _RING * radius
        local = np.concatenate([np.c_[ring, np.full(len(ring), z)] for z in (-half, half)])
    return local @ rotation.reshape(3, 3).T + thing.position


_TURN = np.linspace(0, 2 * np.pi, 12, endpoint=False)
_RING = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_ICOSPHERE = np.concatenate(
    [np.c_[_RING * math.cos(a), np.full(len(_RING), math.sin(a))] for a in np.radians([-60, -30, 0, 30, 60])]
)


def _hull_area(points: np.ndarray) -> float:
    """The area of the convex hull of `points` (N, 2), by the monotone chain."""
    ordered = sorted(map(tuple, points.tolist()))

    def half(sequence: list) -> list:
        chain: list = []
        for x, y in sequence:
            while len(chain) > 1:
                (x1, y1), (x2, y2) = chain[-2:]
                if (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    hull = half(ordered) + half(ordered[::-1])
    return 0.5 * abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(hull, hull[1:] + hull[:1], strict=True)))


def draw_scene(renderer: SceneRenderer, *, split: str, seed: int, index: int, crowded: bool = False) -> Picture:
    """The picture number `index` of a split: always the same, and never one of the other split.

    Raises:
        ValueError: If `split` is unknown.
    """
    if split not in SPLIT_KEYS:
        raise ValueError(f"Scenes have the splits {', '.join(SPLIT_KEYS)}; {split!r} is none of them.")
    rng = np.random.default_rng([SPLIT_KEYS[split], seed, index, int(crowded)])
    while True:
        scene = sample_scene(rng, crowded=crowded)
        picture = renderer.draw(scene) if scene.named else None
        if picture is not None:
            return picture
