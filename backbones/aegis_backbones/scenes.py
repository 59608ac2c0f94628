"""What a pre-training picture shows, as numbers: things on a table, clutter, camera, lights.

A `Scene` is sampled without a renderer and without a robot. Named things take their words from
`aegis_envs.objects`; clutter is grey, white, beige or brown and has no name, so that whatever stands in a later
picture (an arm, a gripper, a cable) is already known as "not something we are asked about".

Lengths in metres, the table's top is z = 0, angles in radians. Image coordinates (u, v) are in [0, 1], u to the
right, v downwards.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from aegis_envs.objects import COLOURS, SHAPES, TARGET_SHAPE

IMAGE_SIZE = 96  # pixels, both sides
ALL_SHAPES: tuple[str, ...] = (*SHAPES, TARGET_SHAPE)
MAX_THINGS = 5
MAX_CROWD = 14  # things of a crowded scene
MAX_CLUTTER = 6
SPLIT_KEYS = {"train": 0, "validation": 1}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `right`, `up` and `back` are the columns of its rotation matrix."""

    position: np.ndarray  # (3,) metres
    right: np.ndarray  # (3,) unit
    up: np.ndarray  # (3,) unit
    back: np.ndarray  # (3,) unit: the camera looks along -back
    fovy: float  # full vertical angle, radians

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image coordinates of `points` (N, 3): uv (N, 2) in [0, 1] where seen, and depth (N,) in metres."""
        offset = points - self.position
        depth = -offset @ self.back
        scale = 2.0 * depth * math.tan(self.fovy / 2)
        uv = np.stack([0.5 + offset @ self.right / scale, 0.5 - offset @ self.up / scale], axis=-1)
        return uv, depth

    def on_table(self, u: float, v: float) -> np.ndarray | None:
        """The point (3,) of the plane z = 0 that is seen at (u, v), or None above the horizon."""
        half = math.tan(self.fovy / 2)
        ray = (2 * u - 1) * half * self.right + (1 - 2 * v) * half * self.up - self.back
        if ray[2] > -1e-3:
            return None
        return self.position - self.position[2] / ray[2] * ray


@dataclass(frozen=True)
class Thing:
    """A body of the scene; `colour` and `shape` are its words, None for clutter."""

    colour: str | None
    shape: str | None
    geometry: str  # "box", "sphere", "cylinder", "capsule"
    size: np.ndarray  # (3,) half lengths in MuJoCo's sense
    position: np.ndarray  # (3,) centre
    quaternion: np.ndarray  # (4,) w, x, y, z
    rgb: np.ndarray  # (3,) in [0, 1]


@dataclass(frozen=True)
class Light:
    """A directional light."""

    direction: np.ndarray  # (3,) unit, from the light
    diffuse: np.ndarray  # (3,)
    specular: float


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on."""

    camera: Camera
    named: tuple[Thing, ...]
    clutter: tuple[Thing, ...]
    lights: tuple[Light, ...]
    ambient: np.ndarray  # (3,) light from everywhere
    headlight: np.ndarray  # (3,) light from the camera
    table_rgb: np.ndarray  # (3,)
    floor_rgb: np.ndarray  # (3,)
    table_half: np.ndarray  # (2,) half extent
    table_texture: int  # an index, modulo the number of textures that the renderer has
    floor_texture: int
    shininess: float
    sky: bool  # a bright background instead of black


def sample_scene(rng: np.random.Generator, *, crowded: bool = False) -> Scene:
    """Draw a scene. Visibility is not checked here: `SceneRenderer.draw` knows what hides what.

    Args:
        rng: Draws everything.
        crowded: As many things as fit, up to `MAX_CROWD`, instead of one to five: four times the lessons about looks
            for the price of a picture.
    """
    camera = _camera(rng)
    reach = float(np.linalg.norm(camera.position))
    base_px = rng.uniform(12.0, 19.0)  # the typical diameter of a thing at the picture's centre, in pixels
    unit = base_px / IMAGE_SIZE * 2.0 * reach * math.tan(camera.fovy / 2)
    named = _named_things(rng, camera, unit, crowded=crowded)
    clutter = _clutter(rng, camera, unit, named)
    lights = tuple(_light(rng) for _ in range(int(rng.integers(1, 3))))
    ambient, headlight = rng.uniform(0.2, 0.5), rng.uniform(0.0, 0.45)
    return Scene(
        camera=camera,
        named=named,
        clutter=clutter,
        lights=lights,
        ambient=np.full(3, ambient) * _tint(rng, 0.05),
        headlight=np.full(3, headlight),
        table_rgb=_surface_colour(rng),
        floor_rgb=_surface_colour(rng),
        table_half=reach * rng.uniform(0.45, 1.6, size=2),
        table_texture=int(rng.integers(1000)),
        floor_texture=int(rng.integers(1000)),
        shininess=float(rng.uniform(0.0, 0.7)),
        sky=bool(rng.random() < 0.6),
    )


def _camera(rng: np.random.Generator) -> Camera:
    """Somewhere above the table, looking near its middle, upright up to a small roll."""
    elevation = math.radians(rng.uniform(24.0, 68.0))
    azimuth = rng.uniform(0.0, 2 * math.pi)
    distance = rng.uniform(0.45, 1.2)
    position = distance * np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    target = np.array([*rng.normal(0.0, 0.03 * distance, size=2), rng.uniform(-0.02, 0.06)])
    back = _unit(position - target)
    right = _unit(np.cross([0.0, 0.0, 1.0], back))
    up = np.cross(back, right)
    roll = rng.normal(0.0, math.radians(2.0))
    right, up = math.cos(roll) * right + math.sin(roll) * up, math.cos(roll) * up - math.sin(roll) * right
    return Camera(position, right, up, back, fovy=math.radians(rng.uniform(36.0, 62.0)))


def _named_things(rng: np.random.Generator, camera: Camera, unit: float, *, crowded: bool) -> tuple[Thing, ...]:
    """One to five things, apart from each other in the picture, mostly on the table."""
    count = MAX_CROWD if crowded else int(rng.choice([1, 2, 3, 4, 5], p=[0.08, 0.16, 0.28, 0.28, 0.20]))
    things: list[Thing] = []
    circles: list[tuple[np.ndarray, float]] = []  # centre (u, v) and radius of what is placed already
    for _ in range(count):
        colour = str(rng.choice(list(COLOURS)))
        shape = str(rng.choice(ALL_SHAPES, p=[0.27, 0.25, 0.25, 0.23]))
        for _attempt in range(12):
            thing = _named_thing(rng, camera, unit, colour, shape)
            if thing is None:
                continue
            centre, radius = outline(camera, thing)
            inside = np.all(centre - 0.6 * radius > 0.01) and np.all(centre + 0.6 * radius < 0.99)
            apart = 0.5 if rng.random() < 0.1 else 0.85  # now and then one stands on or before another
            if inside and all(np.linalg.norm(centre - c) > apart * (radius + r) for c, r in circles):
                things.append(thing)
                circles.append((centre, radius))
                break
    return tuple(things)


def _named_thing(rng: np.random.Generator, camera: Camera, unit: float, colour: str, shape: str) -> Thing | None:
    point = camera.on_table(*rng.uniform(0.05, 0.95, size=2))
    if point is None:
        return None
    half = unit / 2 * rng.uniform(0.8, 1.3)
    yaw = rng.uniform(0.0, 2 * math.pi)
    quaternion = np.array([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])
    if shape == TARGET_SHAPE:
        radius = half * rng.uniform(1.2, 2.2)
        size, geometry = np.array([radius, radius * rng.uniform(0.02, 0.07), 0.0]), "cylinder"
        height = size[1]
    elif shape == "cube":
        size, geometry, height = np.full(3, half * 0.9), "box", half * 0.9
    elif shape == "ball":
        size, geometry, height = np.full(3, half * 1.1), "sphere", half * 1.1
    else:
        radius = half * rng.uniform(0.75, 0.95)  # taller than wide: a squat one looks like a cube in so few pixels
        size, geometry = np.array([radius, radius * rng.uniform(1.3, 1.9), 0.0]), "cylinder"
        height = size[1]
    if shape != TARGET_SHAPE and rng.random() < 0.12:  # held up, as by a gripper
        height += half * rng.uniform(0.5, 4.0)
        quaternion = _quaternion_product(quaternion, _turn_about_x(rng.normal(0.0, 0.25)))
    position = np.array([point[0], point[1], height])
    return Thing(colour, shape, geometry, size, position, quaternion, jittered(rng, colour))


def _clutter(rng: np.random.Generator, camera: Camera, unit: float, named: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """Nameless bodies: small ones lying about, and sometimes a chain of big ones, jointed like an arm."""
    circles = [outline(camera, t) for t in named]
    found: list[Thing] = []
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.3, 0.3, 0.25, 0.15]))):
        thing = _clutter_piece(rng, camera, unit)
        if thing is None:
            continue
        centre, radius = outline(camera, thing)
        if all(np.linalg.norm(centre - c) > 0.7 * (radius + r) for c, r in circles):
            found.append(thing)
    if rng.random() < 0.5:
        found += _arm_like_chain(rng, camera, unit)
    return tuple(found[:MAX_CLUTTER])


def _clutter_piece(rng: np.random.Generator, camera: Camera, unit: float) -> Thing | None:
    point = camera.on_table(*rng.uniform(-0.05, 1.05, size=2))
    if point is None or np.linalg.norm(point) > 3 * np.linalg.norm(camera.position):
        return None
    geometry = str(rng.choice(["box", "cylinder", "capsule", "capsule"]))
    size = unit / 2 * np.exp(rng.uniform(math.log(0.4), math.log(2.2), size=3))
    quaternion = _unit(rng.normal(size=4))
    position = np.array([point[0], point[1], rng.uniform(0.0, 1.0) * size.max()])
    return Thing(None, None, geometry, size, position, quaternion, _nameless_colour(rng))


def _arm_like_chain(rng: np.random.Generator, camera: Camera, unit: float) -> list[Thing]:
    """Three or four long bodies end to end, from somewhere on the table into the air."""
    start = camera.on_table(*rng.uniform(0.0, 1.0, size=2))
    if start is None or np.linalg.norm(start) > 3 * np.linalg.norm(camera.position):
        return []
    colour = _nameless_colour(rng)
    links: list[Thing] = []
    direction = _unit(np.array([*rng.normal(0.0, 0.5, size=2), 1.0]))
    for _ in range(int(rng.integers(2, 5))):
        half_length, thickness = unit * rng.uniform(0.8, 2.6), unit * rng.uniform(0.2, 1.0)
        centre = start + direction * half_length
        geometry = str(rng.choice(["box", "cylinder", "capsule"]))
        size = (
            np.array([thickness, thickness * rng.uniform(0.5, 1.0), half_length])
            if geometry == "box"
            else np.array([thickness, half_length, 0.0])
        )
        rgb = colour if rng.random() < 0.6 else _nameless_colour(rng)
        links.append(Thing(None, None, geometry, size, centre, _turn_z_to(direction), rgb))
        start = start + direction * 2 * half_length
        direction = _unit(direction + rng.normal(0.0, 0.8, size=3) + np.array([0.0, 0.0, -0.4]))
        if start[2] + direction[2] * unit * 3 < 0:
            direction[2] = abs(direction[2])
    return links


def outline(camera: Camera, thing: Thing) -> tuple[np.ndarray, float]:
    """Centre (2,) in image coordinates and a radius in the same unit that about encloses the body's picture."""
    uv, depth = camera.project(thing.position[None])
    if thing.geometry == "box":
        extent = float(np.linalg.norm(thing.size)) * 0.9
    elif thing.geometry == "sphere":
        extent = float(thing.size[0])
    else:
        extent = float(max(thing.size[0], thing.size[1]))
    return uv[0], extent / (2.0 * max(float(depth[0]), 1e-3) * math.tan(camera.fovy / 2))


def jittered(rng: np.random.Generator, colour: str) -> np.ndarray:
    """`colour` as one specimen of it looks: hue within a third of the distance to its neighbours."""
    hue, saturation, value = colorsys.rgb_to_hsv(*COLOURS[colour])
    hue = (hue + float(np.clip(rng.normal(0.0, 0.008), -0.014, 0.014))) % 1.0
    saturation *= rng.uniform(0.82, 1.0)
    value = min(1.0, value * rng.uniform(0.78, 1.15))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _nameless_colour(rng: np.random.Generator) -> np.ndarray:
    """Grey, white, black, beige or brown: saturation too low for one of the six names."""
    kind = rng.random()
    if kind < 0.65:
        return np.full(3, rng.uniform(0.04, 0.98)) * _tint(rng, 0.04)
    value = rng.uniform(0.2, 0.95)
    return np.array(colorsys.hsv_to_rgb(rng.uniform(0.05, 0.13), rng.uniform(0.1, 0.35), value))


def _surface_colour(rng: np.random.Generator) -> np.ndarray:
    """A table or floor: any lightness, a faint hue at most, or wood."""
    if rng.random() < 0.3:
        return np.array(colorsys.hsv_to_rgb(rng.uniform(0.06, 0.12), rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.8)))
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.22), rng.uniform(0.08, 0.98)))


def _light(rng: np.random.Generator) -> Light:
    direction = _unit(np.array([*rng.uniform(-1.0, 1.0, size=2), -rng.uniform(0.5, 1.5)]))
    diffuse = np.full(3, rng.uniform(0.25, 0.65)) * _tint(rng, 0.06)
    return Light(direction, diffuse, float(rng.uniform(0.0, 0.4)))


def _tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    return 1.0 + rng.uniform(-strength, strength, size=3)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _turn_about_x(angle: float) -> np.ndarray:
    return np.array([math.cos(angle / 2), math.sin(angle / 2), 0.0, 0.0])


def _turn_z_to(direction: np.ndarray) -> np.ndarray:
    """The shortest rotation (4,) that takes the z axis to the unit vector `direction`."""
    w = 1.0 + direction[2]
    if w < 1e-6:
        return np.array([0.0, 1.0, 0.0, 0.0])
    return _unit(np.array([w, -direction[1], direction[0], 0.0]))


def _quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    w1, x1, y1, z1 = a
    w2, x2, y2, z2 = b
    return np.array(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ]
    )
