from pathlib import Path

import numpy as np
import pytest
from so101_nexus import get_so101_mujoco_model_path

from aegis_envs.meshes import cluster_vertices, read_stl
from aegis_envs.robot import robot_spec


def _triangles() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 0.1, (2000, 3, 3))


def test_a_cell_far_smaller_than_the_mesh_changes_nothing_but_the_order() -> None:
    triangles = _triangles()
    vertices, faces = cluster_vertices(triangles, 1e-6)
    rebuilt = np.sort(vertices[faces].mean(axis=1), axis=0)
    np.testing.assert_allclose(rebuilt, np.sort(triangles.mean(axis=1), axis=0), atol=1e-6)


def test_a_cell_that_holds_the_mesh_leaves_no_face() -> None:
    _, faces = cluster_vertices(_triangles(), 1.0)
    assert len(faces) == 0


def test_no_vertex_moves_further_than_a_cells_diagonal() -> None:
    triangles, cell = _triangles(), 0.02
    vertices, _ = cluster_vertices(triangles, cell)
    distances = np.linalg.norm(triangles.reshape(-1, 1, 3)[::37] - vertices, axis=2).min(axis=1)
    assert distances.max() <= np.sqrt(3) * cell


def test_no_face_is_degenerate_or_twice_there() -> None:
    _, faces = cluster_vertices(_triangles(), 0.02)
    assert (faces[:, 0] != faces[:, 1]).all() and (faces[:, 1] != faces[:, 2]).all()
    assert len(np.unique(faces, axis=0)) == len(faces)


def test_a_text_file_is_refused_as_stl(tmp_path: Path) -> None:
    path = tmp_path / "ascii.stl"
    path.write_bytes(b"solid thing\n" + b"facet normal 0 0 1\n" * 20)
    with pytest.raises(ValueError, match="not a binary STL"):
        read_stl(path)


def test_the_light_arm_has_the_models_links_masses_and_inertias() -> None:
    import mujoco

    original = mujoco.MjModel.from_xml_path(str(get_so101_mujoco_model_path()))
    light = robot_spec().compile()
    np.testing.assert_array_equal(light.body_mass, original.body_mass)
    mount = original.body("camera_mount").id  # the one body whose inertia comes from its (clustered) mesh
    others = np.arange(original.nbody) != mount
    np.testing.assert_allclose(light.body_inertia[others], original.body_inertia[others], rtol=1e-12)
    assert light.nmeshface < original.nmeshface / 50
