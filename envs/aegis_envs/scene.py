"""The table: the arm, slots for objects and target discs, lights and cameras, as one MuJoCo model.

The model is compiled once. An episode's objects are written into its slots: a geom's type, size and colour may change
at run time, so a reset costs a microsecond where a compilation costs ten milliseconds and a new renderer.

World frame, metres: x away from the robot's base, y to its left, z up from the table. The front camera looks at the
robot from across the table, so the image's right is the robot's left (+y).
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from aegis_envs.looks import add_table_patterns
from aegis_envs.objects import COLOURS, TARGET_SHAPE, ObjectKind
from aegis_envs.robot import robot_spec

TIMESTEP = 0.005  # seconds

# Half sizes in metres, so that each shape is about ten pixels wide in a 96-pixel image.
CUBE_HALF = 0.0135
BALL_RADIUS = 0.0155
CYLINDER_RADIUS, CYLINDER_HALF_HEIGHT = 0.0125, 0.018
DISC_RADIUS, DISC_HALF_HEIGHT = 0.03, 0.0005

HALF_HEIGHT = {"cube": CUBE_HALF, "ball": BALL_RADIUS, "cylinder": CYLINDER_HALF_HEIGHT}
RADIUS = {"cube": CUBE_HALF, "ball": BALL_RADIUS, "cylinder": CYLINDER_RADIUS}  # of the footprint, inscribed
OBJECT_MASS = 0.02  # kilograms

FRONT, WRIST = "front", "wrist"
CAMERAS = (FRONT, WRIST)
_FRONT_POSITION = (0.56, 0.0, 0.42)
_FRONT_TARGET = (0.20, 0.0, 0.02)
_FRONT_FOV = 30.0  # degrees, vertical

_TABLE_COLOUR = (0.60, 0.60, 0.58, 1.0)
_PARKED = -1.0  # metres, height of an unused slot
_SIZES = {
    "cube": (mujoco.mjtGeom.mjGEOM_BOX, (CUBE_HALF, CUBE_HALF, CUBE_HALF)),
    "ball": (mujoco.mjtGeom.mjGEOM_SPHERE, (BALL_RADIUS, 0.0, 0.0)),
    "cylinder": (mujoco.mjtGeom.mjGEOM_CYLINDER, (CYLINDER_RADIUS, CYLINDER_HALF_HEIGHT, 0.0)),
}


@dataclass(frozen=True)
class Placement:
    """One thing on the table: what it is, where its centre stands (metres) and how it is turned (radians)."""

    kind: ObjectKind
    x: float
    y: float
    yaw: float = 0.0


@dataclass(frozen=True)
class Layout:
    """What stands on the table: graspable objects and flat discs, each in slot order."""

    objects: tuple[Placement, ...]
    discs: tuple[Placement, ...] = ()


def build_model(*, objects: int, discs: int, image_size: int, table_patterns: bool = False) -> mujoco.MjModel:
    """Compiles the table with that many object and disc slots, for images up to `image_size` pixels.

    `table_patterns` adds the materials that an episode may give the table (looks.py).
    """
    spec = robot_spec()
    if table_patterns:
        add_table_patterns(spec)
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    visual = spec.visual
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 0
    visual.global_.offwidth = visual.global_.offheight = image_size
    visual.headlight.ambient, visual.headlight.diffuse = (0.35,) * 3, (0.15,) * 3
    visual.headlight.specular = (0.0,) * 3
    _add_surroundings(spec)
    for i in range(objects):
        _add_object_slot(spec, i)
    for i in range(discs):
        spec.worldbody.add_body(name=disc_name(i), mocap=True, pos=(0, 0, _PARKED)).add_geom(
            name=disc_name(i),
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=(DISC_RADIUS, DISC_HALF_HEIGHT, 0),
            contype=0,
            conaffinity=0,
        )
    return spec.compile()


def object_name(slot: int) -> str:
    """Name of the body, geom and joint of an object slot."""
    return f"object_{slot}"


def disc_name(slot: int) -> str:
    """Name of the body and geom of a disc slot."""
    return f"{TARGET_SHAPE}_{slot}"


def _add_surroundings(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(0.8, 0.8, 0.05),  # as it is drawn: an infinite plane costs three times the rest of the scene
        rgba=_TABLE_COLOUR,
        friction=(0.7, 5e-3, 1e-4),
    )
    # From the side of the camera, so that a cube's three visible faces differ in brightness.
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=(0.6, -0.5, 1.2),
        dir=(-0.45, 0.55, -1.0),
        diffuse=(0.65, 0.65, 0.65),
        specular=(0.1, 0.1, 0.1),
        castshadow=False,
    )
    world.add_camera(name=FRONT, pos=_FRONT_POSITION, fovy=_FRONT_FOV, quat=_look_at(_FRONT_POSITION, _FRONT_TARGET))
    spec.camera("wrist_cam").name = WRIST


def front_column(x: float, y: float) -> float:
    """Where a place on the table is in the front camera's image, from the left: u in [0, 1]."""
    forward = np.subtract(_FRONT_TARGET, _FRONT_POSITION)
    depth = np.subtract((x, y, 0.0), _FRONT_POSITION) @ forward / np.linalg.norm(forward)
    return float(0.5 + 0.5 * y / (depth * np.tan(np.radians(_FRONT_FOV) / 2)))


def _look_at(position: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """Quaternion (4,) of an upright camera: it looks along its -z, its x points to the image's right."""
    backward = np.subtract(position, target)
    backward /= np.linalg.norm(backward)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    return quaternion


def _add_object_slot(spec: mujoco.MjSpec, slot: int) -> None:
    body = spec.worldbody.add_body(name=object_name(slot), pos=(0, 0, _PARKED))
    # Damping stands for the rolling and air resistance that stops a ball which nobody pushes.
    body.add_joint(name=object_name(slot), type=mujoco.mjtJoint.mjJNT_FREE, damping=(1e-4, 0, 0))
    largest = max(max(size) for _, size in _SIZES.values())
    body.add_geom(
        name=object_name(slot),
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(largest,) * 3,  # bounding volumes are compiled from this one and hold for every shape
        mass=OBJECT_MASS,
        condim=6,
        friction=(0.7, 5e-3, 2e-3),
    )


def write_layout(
    model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, *, masses: tuple[float, ...] | None = None
) -> None:
    """Resets `data` and puts a layout's things into the model's slots, of which there must be as many.

    `masses` are factors of the objects' mass.
    """
    for slot, placement in enumerate(layout.objects):
        _write_kind(model, slot, placement.kind, OBJECT_MASS * (masses[slot] if masses else 1.0))
    mujoco.mj_setConst(model, data)
    mujoco.mj_resetData(model, data)
    for slot, placement in enumerate(layout.objects):
        half_yaw, height = placement.yaw / 2, HALF_HEIGHT[placement.kind.shape]
        pose = (placement.x, placement.y, height, np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw))
        data.joint(object_name(slot)).qpos = pose
    for slot, placement in enumerate(layout.discs):
        name = disc_name(slot)
        model.geom(name).rgba = (*COLOURS[placement.kind.colour], 1.0)
        data.mocap_pos[model.body(name).mocapid[0]] = (placement.x, placement.y, DISC_HALF_HEIGHT)


def _write_kind(model: mujoco.MjModel, slot: int, kind: ObjectKind, mass: float) -> None:
    geom = model.geom(object_name(slot))
    geom.type, geom.size = _SIZES[kind.shape]
    geom.rgba = (*COLOURS[kind.colour], 1.0)
    body = model.body(object_name(slot))
    body.mass, body.inertia = mass, _inertia(kind.shape, mass)


def _inertia(shape: str, mass: float) -> tuple[float, float, float]:
    """Principal moments of a homogeneous solid, kg m^2."""
    if shape == "cube":
        moment = mass * (2 * CUBE_HALF) ** 2 / 6
        return (moment,) * 3
    if shape == "ball":
        moment = 0.4 * mass * BALL_RADIUS**2
        return (moment,) * 3
    across = mass * (3 * CYLINDER_RADIUS**2 + (2 * CYLINDER_HALF_HEIGHT) ** 2) / 12
    return (across, across, mass * CYLINDER_RADIUS**2 / 2)
