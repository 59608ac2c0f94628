"""The SO-101 arm: so101-nexus' robot model (from MuJoCo Menagerie) made light enough for a CPU.

Kept: links, inertias, joints, servos and the primitive collision shapes. Changed: visual meshes are clustered
(meshes.py), collision meshes give way to a few boxes along the jaws, and the arm is white, because its usual yellow
would be in the way of questions about yellow and orange objects.

The gripper body's frame: x from the fixed jaw towards the moving jaw, -z towards the fingertips. Sites:
    tip     between the fingertips when they are closed: what touches
    fork    between the fingertips when they are a little apart: what pushes
    grasp   in the middle of the opening that fits an object: what closes around it
"""

from pathlib import Path

import mujoco
from so101_nexus import get_so101_mujoco_model_path

from aegis_envs.meshes import light_mesh

HOME_DEGREES = (0.0, -75.0, 60.0, 75.0, 0.0, 10.0)  # retracted, out of the front camera's view of the table

SITES = ("tip", "fork", "grasp")

_PLASTIC = (0.86, 0.86, 0.88, 1.0)
_MOTOR = (0.16, 0.16, 0.18, 1.0)

# Boxes in place of the jaws' collision meshes: body, centre and half sizes in metres.
_JAW_BOXES = (
    ("gripper", (-0.0155, 0.0, -0.060), (0.0025, 0.010, 0.020)),
    ("gripper", (-0.0115, 0.0, -0.088), (0.0020, 0.007, 0.010)),
    ("moving_jaw_so101_v1", (-0.0065, -0.040, 0.019), (0.0030, 0.016, 0.009)),
    ("moving_jaw_so101_v1", (-0.0085, -0.064, 0.019), (0.0020, 0.010, 0.006)),
)


def robot_spec() -> mujoco.MjSpec:
    """An editable model of the arm alone, standing at the origin and facing +x."""
    path = Path(get_so101_mujoco_model_path())
    spec = mujoco.MjSpec.from_file(str(path))
    _replace_collision_meshes(spec)
    _lighten_visual_meshes(spec, path.parent / spec.meshdir)
    for material in spec.materials:
        material.rgba = _MOTOR if material.name.startswith("sts3215") else _PLASTIC
    gripper = spec.body("gripper")
    gripper.add_site(name="tip", pos=(-0.0065, 0.0, -0.1025), group=4)
    gripper.add_site(name="fork", pos=(0.001, 0.0, -0.1015), group=4)
    gripper.add_site(name="grasp", pos=(0.0125, 0.0, -0.0975), group=4)
    return spec


def _replace_collision_meshes(spec: mujoco.MjSpec) -> None:
    for geom in list(spec.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and geom.classname.name == "collision_gripper_mesh":
            spec.delete(geom)
    gripper_class = spec.find_default("collision_gripper")
    for i, (body, centre, half_size) in enumerate(_JAW_BOXES):
        spec.body(body).add_geom(
            gripper_class, name=f"jaw_box_{i}", type=mujoco.mjtGeom.mjGEOM_BOX, pos=centre, size=half_size
        )


def _lighten_visual_meshes(spec: mujoco.MjSpec, folder: Path) -> None:
    used = {geom.meshname for geom in spec.geoms if geom.type == mujoco.mjtGeom.mjGEOM_MESH}
    for mesh in list(spec.meshes):
        name = mesh.name or Path(mesh.file).stem
        if name not in used:
            spec.delete(mesh)
            continue
        vertices, faces = light_mesh(folder / mesh.file)
        mesh.name = name
        mesh.file = ""
        mesh.uservert = vertices.ravel().tolist()
        mesh.userface = faces.ravel().tolist()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # clustered meshes need not be closed
