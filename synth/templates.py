"""From numbers to documents: the template of a type, and a copy of it with its fields filled in."""
import functools

from synth.draw import rng
from synth.families import FAMILIES
from synth.fields import draw_field


@functools.lru_cache(maxsize=32)
def template(seed, type_id):
    """The Template of a type. The families alternate, so any nine consecutive types have one of each."""
    return FAMILIES[type_id % len(FAMILIES)](rng("type", seed, type_id))


def type_name(type_id):
    """A readable folder name such as `id_card_00012`. It depends on the id alone, not on the seed."""
    return f"{FAMILIES[type_id % len(FAMILIES)].__name__}_{type_id:05d}"


def render(seed, type_id, copy_id):
    """One clean copy of a document: uint8 BGR [H,W,3], a pure function of the three integers, longest side 356 to 392.

    All copies of a type have the same art. Their fields have different content, such as the person and the numbers."""
    kind = template(seed, type_id)
    canvas = kind.art.copy()
    for i, field in enumerate(kind.fields):
        draw_field(canvas, field, rng("copy", seed, type_id, copy_id, field.person or i))
    return canvas
