"""From numbers to documents: the template of a type, and a copy of it with its fields filled in."""
import functools
from dataclasses import replace

import numpy as np

from synth.draw import rng
from synth.families import FAMILIES
from synth.fields import draw_field
from synth.page import GROUP, Chance


def chance_of(seed, type_id):
    """The random numbers of a type. The families alternate, so any len(FAMILIES) consecutive types have one of each."""
    name, family = list(FAMILIES.items())[type_id % len(FAMILIES)]
    return Chance(seed, name, type_id // len(FAMILIES), family.alike, family.share)


@functools.lru_cache(maxsize=32)
def template(seed, type_id):
    """The Template of a type."""
    chance = chance_of(seed, type_id)
    return FAMILIES[chance.family].draw(chance)


def type_name(type_id):
    """A readable folder name such as `id_card_00012`. It depends on the id alone, not on the seed."""
    return f"{list(FAMILIES)[type_id % len(FAMILIES)]}_{type_id:05d}"


def look_alikes(seed, type_id):
    """The other types of a group of look-alikes, [] for a type that has none; see page.Chance."""
    families = len(FAMILIES)
    if not chance_of(seed, type_id).look_alike:
        return []
    first = type_id - type_id // families % GROUP * families
    return [other for other in range(first, first + GROUP * families, families) if other != type_id]


def shape_of(kind, seed, type_id, copy_id):
    """The Template of one copy: `kind` itself, or without some of the rows that it may lack."""
    if not kind.cut:
        return kind
    first, last = kind.cut
    gone = int((last - first) * rng("cut", seed, type_id, copy_id).uniform(0, .8))
    start = last - gone
    moved = [replace(f, y=f.y - gone) if f.y >= start else replace(f, h=min(f.h, start - f.y)) for f in kind.fields]
    return replace(kind, art=np.delete(kind.art, slice(start, last), 0), fields=tuple(moved))


def render(seed, type_id, copy_id):
    """One clean copy of a document: uint8 BGR [H,W,3], a pure function of the three integers and the fonts, longest side 320
    to 396 (a till receipt may be shorter, as long as its items need).

    All copies of a type have the same art. Their fields have different content, such as the person and the numbers."""
    kind = shape_of(template(seed, type_id), seed, type_id, copy_id)
    canvas = kind.art.copy()
    for i, field in enumerate(kind.fields):
        draw_field(canvas, field, rng("copy", seed, type_id, copy_id, field.person or i))
    return canvas
