"""The families of documents: one function each, from a Chance to a Template. templates.py assigns types to families.

Types of a family share formats, palettes and conventions, so color and aspect ratio alone do not separate them. Emblem,
words, layout and line work do; and in groups of look-alikes only one of these (see page.Chance).
"""
from typing import Callable, NamedTuple

from synth.families.cards import bank_card, game_card, id_card, passport, ticket
from synth.families.labels import badge, label, parcel, plate, price
from synth.families.money import banknote, cheque
from synth.families.pages import certificate, form, invoice, letter, menu, timetable
from synth.families.screens import screen
from synth.families.shops import package, receipt


class Family(NamedTuple):
    """draw: from a Chance to a Template; alike: what may differ within a group of look-alikes, each a string of aspects;
    share: the share of groups that are look-alikes."""
    draw: Callable
    alike: tuple = ("color", "layout", "name")
    share: float = .375


_WITH_ART = ("color", "layout", "name", "art")
_WITHOUT_NAME = ("color", "layout")  # names are too small to tell types apart
FAMILIES = {family.draw.__name__: family for family in (
    Family(id_card, _WITH_ART), Family(passport, ("color", "layout", "art")), Family(bank_card, _WITH_ART), Family(form),
    Family(receipt, ("layout", "name")), Family(ticket), Family(label), Family(certificate, _WITH_ART), Family(invoice),
    Family(plate, _WITHOUT_NAME), Family(badge), Family(price, _WITHOUT_NAME), Family(parcel), Family(package, _WITH_ART),
    Family(cheque, _WITH_ART), Family(banknote, _WITH_ART), Family(letter), Family(menu), Family(timetable, _WITHOUT_NAME),
    Family(screen, _WITHOUT_NAME), Family(game_card, ("art", "art name", "art name", "color", "layout"), .75))}
