"""Light visual meshes: vertex clustering.

The robot model's meshes have 400,000 triangles, which a software renderer draws in 30 ms whatever the image size. All
vertices that fall into one cell of a grid become their mean; triangles that thereby lose a corner disappear. At 8 mm,
5,400 triangles are left and a 96-pixel frame takes a millisecond.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CELL = 0.008  # metres: edge of a clustering cell

_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_stl(path: Path) -> NDArray[np.float64]:
    """The triangles (F, 3 corners, xyz) of a binary STL file, in the file's unit.

    Raises:
        ValueError: If the file is shorter than its header says, as an ASCII STL is.
    """
    content = path.read_bytes()
    count = int(np.frombuffer(content, "<u4", count=1, offset=80)[0])
    if len(content) < 84 + count * _STL_TRIANGLE.itemsize:
        raise ValueError(f"{path} is not a binary STL file: its header promises {count} triangles.")
    return np.frombuffer(content, _STL_TRIANGLE, count=count, offset=84)["corners"].astype(np.float64)


def cluster_vertices(triangles: NDArray[np.float64], cell: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Simplifies a triangle soup (F, 3, 3) to vertices (V, 3) and faces (G, 3), one vertex a grid cell."""
    points = triangles.reshape(-1, 3)
    x, y, z = (np.floor((points - points.min(axis=0)) / cell).astype(np.int64) + 1).T
    _, vertex_of_point = np.unique((x << 40) | (y << 20) | z, return_inverse=True)
    counts = np.bincount(vertex_of_point)
    vertices = np.stack([np.bincount(vertex_of_point, points[:, i]) / counts for i in range(3)], axis=1)
    faces = vertex_of_point.reshape(-1, 3)
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (a != c)]
    # Rotate each triangle so that its smallest index comes first: equal triangles become equal rows.
    first = faces.argmin(axis=1)
    faces = faces[np.arange(len(faces))[:, None], (first[:, None] + np.arange(3)) % 3]
    return vertices, np.unique(faces, axis=0)


@cache
def light_mesh(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices (V, 3) and faces (G, 3) of a file's mesh at `CELL`, computed once a process."""
    return cluster_vertices(read_stl(path), CELL)
