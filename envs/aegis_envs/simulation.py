"""The physics of an episode: the arm's servos, the things on the table, and who touches whom.

What tasks judge and experts see is asked here; nothing above this file reads MuJoCo's arrays.
"""

import mujoco
import numpy as np

from aegis_envs.looks import Looks
from aegis_envs.randomization import ARM_JOINTS, Randomization
from aegis_envs.scene import HALF_HEIGHT, TIMESTEP, Layout, build_model, disc_name, object_name, write_layout
from aegis_envs.servos import Servos
from aegis_envs.units import JOINTS, Array

_SLICES = 5  # contacts are looked for, and the servo's target moves on, this often in a control step


class Simulation:
    """A table with a fixed number of slots.

    Attributes:
        model: The compiled model.
        data: Its state.
        layout: What stands in the slots in this episode.
        touched: Object slots that the gripper touched since contacts were last forgotten: in the last
            control step.
        bumped: Object slots that any part of the arm, gripper included, touched in that time.
    """

    def __init__(self, *, objects: int, discs: int, image_size: int, control_hz: int, table_patterns: bool = False):
        self.model = build_model(objects=objects, discs=discs, image_size=image_size, table_patterns=table_patterns)
        self.data = mujoco.MjData(self.model)
        self.layout = Layout(objects=())
        self.touched: set[int] = set()
        self.bumped: set[int] = set()
        self._substeps = round(1 / (control_hz * TIMESTEP * _SLICES))
        self._joints = [self.model.joint(name).qposadr[0] for name in JOINTS]
        self._looks, self._servos, self._time_step = Looks(self.model), Servos(), 0
        self._limits = self.model.actuator_ctrlrange.T.copy()  # (2, 6) radians
        self._slot_of_geom = {self.model.geom(object_name(i)).id: i for i in range(objects)}
        self._gripper_geoms = self._geoms_below("gripper")
        self._arm_geoms = self._geoms_below("base")

    def reset(self, layout: Layout, joints: Array, randomization: Randomization | None = None) -> None:
        """Starts from a layout with the arm at rest at `joints` (6,) in radians, in a world as it was drawn."""
        drawn = randomization or Randomization()
        self.layout = layout
        self._looks.write(drawn)
        write_layout(self.model, self.data, layout, masses=drawn.dynamics.masses if drawn.dynamics else None)
        self._reset_servos(drawn, joints)
        self.data.qpos[self._joints] = joints
        self.data.ctrl[:] = joints
        mujoco.mj_forward(self.model, self.data)
        self.forget_contacts()

    def advance(self, target: Array) -> None:
        """Simulates one control step in which the servos' targets move to `target` (6,) in radians."""
        start = self._servos.aimed
        target = np.clip(target, *self._limits)
        self.forget_contacts()
        for i in range(1, _SLICES + 1):
            self._servos.aim(start + (target - start) * i / _SLICES, self._time_step)
            self.run(self._substeps)

    def aim(self, target: Array) -> None:
        """Sets the servos' targets to `target` (6,) in radians, clipped to their ranges, from the next step on."""
        self._servos.aim(np.clip(target, *self._limits), self._time_step)

    def run(self, steps: int) -> None:
        """Simulates so many time steps in which the servos' targets stay, then looks for contacts."""
        self.data.ctrl[:] = self._servos.hear(self._time_step)
        mujoco.mj_step(self.model, self.data, steps)
        self._time_step += steps
        self._note_contacts()
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _reset_servos(self, drawn: Randomization, joints: Array) -> None:
        self._time_step = 0
        latency = round(drawn.latency.seconds / TIMESTEP) if drawn.latency else 0
        play = np.radians([*drawn.backlash.play, *[0.0] * (len(JOINTS) - ARM_JOINTS)]) if drawn.backlash else None
        self._servos.reset(joints, latency_steps=latency, play=play)

    def forget_contacts(self) -> None:
        """From here on, `touched` and `bumped` are what touches from here on."""
        self.touched, self.bumped = set(), set()

    @property
    def joints(self) -> Array:
        """Joint positions (6,) in radians."""
        return self.data.qpos[self._joints]

    @property
    def limits(self) -> Array:
        """Lower and upper servo targets (2, 6) in radians."""
        return self._limits

    def object_position(self, slot: int) -> Array:
        """Centre (3,) of an object in metres."""
        return self.data.body(object_name(slot)).xpos.copy()

    def object_yaw(self, slot: int) -> float:
        """How far an object is turned about the vertical, radians."""
        rotation = self.data.body(object_name(slot)).xmat
        return float(np.arctan2(rotation[3], rotation[0]))

    def object_speed(self, slot: int) -> float:
        """Speed of an object's centre, m/s."""
        return float(np.linalg.norm(self.data.joint(object_name(slot)).qvel[:3]))

    def height_gain(self, slot: int) -> float:
        """How far an object's centre is above where it stands on the table, metres."""
        shape = self.layout.objects[slot].kind.shape
        return float(self.data.body(object_name(slot)).xpos[2] - HALF_HEIGHT[shape])

    def disc_position(self, slot: int) -> Array:
        """Centre (3,) of a target disc in metres."""
        return self.data.body(disc_name(slot)).xpos.copy()

    def site(self, name: str) -> tuple[Array, Array]:
        """Position (3,) in metres and rotation (3, 3) of one of the gripper's sites."""
        site = self.data.site(name)
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def _geoms_below(self, body: str) -> set[int]:
        root = self.model.body(body).id
        bodies = {root}
        for child in range(root + 1, self.model.nbody):  # a parent's id is smaller than its child's
            if self.model.body_parentid[child] in bodies:
                bodies.add(child)
        return {g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] in bodies}

    def _note_contacts(self) -> None:
        for first, second in self.data.contact.geom[: self.data.ncon].tolist():
            for geom, other in ((first, second), (second, first)):
                slot = self._slot_of_geom.get(geom)
                if slot is not None and other in self._arm_geoms:
                    self.bumped.add(slot)
                    if other in self._gripper_geoms:
                        self.touched.add(slot)
