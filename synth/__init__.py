"""Synthetic documents: endless document types with fixed art and varying fields, and synthetic captures of them.

    image = synth.render(seed, type_id, copy_id)            # a clean copy, uint8 BGR
    photo = synth.capture(image, seed, type_id, copy_id)    # a synthetic capture, as if taken with a phone
    synth.write_train(folder, types=500, copies=8, seed=0)
    synth.write_eval(folder, types=60, captures=4, seed=0)  # types that write_train never writes
"""
from synth.capture import capture
from synth.folders import NEVER_TRAINED, contact_sheet, write_captures, write_eval, write_train
from synth.templates import render, template, type_name

__all__ = ["NEVER_TRAINED", "capture", "contact_sheet", "render", "template", "type_name", "write_captures", "write_eval",
           "write_train"]
