"""What the front camera sees, from the simulator's state: the answers to questions about a frame."""

from typing import NamedTuple

from aegis_envs.objects import ObjectKind
from aegis_envs.rendering import Cameras, project
from aegis_envs.scene import FRONT, disc_name, object_name
from aegis_envs.simulation import Simulation

_COUNTING_SIZE = 192  # pixels, of the images that visible fractions are counted in


class SceneObject(NamedTuple):
    """A thing on the table."""

    colour: str
    shape: str  # one of the object shapes, or "disc"
    pixel: tuple[float, float]  # (u, v) of its centre in the front camera's image, in [0, 1], v downwards
    visible: float  # share of its pixels in that image that nothing else covers
    position: tuple[float, float, float]  # metres

    @property
    def kind(self) -> ObjectKind:
        """Colour and shape."""
        return ObjectKind(self.colour, self.shape)


def scene_objects(simulation: Simulation, cameras: Cameras) -> list[SceneObject]:
    """The things on the table, objects first, then discs."""
    layout, model, data = simulation.layout, simulation.model, simulation.data
    names = [object_name(i) for i in range(len(layout.objects))]
    names += [disc_name(i) for i in range(len(layout.discs))]
    visible = visible_fractions(simulation, cameras, [model.geom(name).id for name in names])
    things = []
    for name, placement, fraction in zip(names, (*layout.objects, *layout.discs), visible, strict=True):
        x, y, z = data.body(name).xpos
        things.append(
            SceneObject(
                colour=placement.kind.colour,
                shape=placement.kind.shape,
                pixel=project(model, data, FRONT, data.body(name).xpos),
                visible=fraction,
                position=(float(x), float(y), float(z)),
            )
        )
    return things


def visible_fractions(simulation: Simulation, cameras: Cameras, geoms: list[int]) -> list[float]:
    """For each geom, how much of what the front camera would show of it alone it does show."""
    model, data = simulation.model, simulation.data
    shown = cameras.object_ids(data, FRONT, size=_COUNTING_SIZE)
    colours, materials = model.geom_rgba.copy(), model.geom_matid.copy()
    fractions = []
    try:
        model.geom_matid[:] = -1  # a material's opacity would win over the geom's
        for geom in geoms:
            model.geom_rgba[:, 3] = 0.0  # what is transparent is not drawn
            model.geom_rgba[geom, 3] = 1.0
            alone = (cameras.object_ids(data, FRONT, size=_COUNTING_SIZE) == geom).sum()
            fractions.append(float((shown == geom).sum() / alone) if alone else 0.0)
    finally:
        model.geom_rgba[:], model.geom_matid[:] = colours, materials
    return fractions
