"""Files of arrays that are damaged or made up: whatever is wrong is one line. No torch."""
import io
import zipfile

import numpy as np
import pytest

from inference import characters, glyph_index
from inference.characters import Characters, load_characters, save_characters
from inference.errors import UserError
from inference.glyph_index import GlyphIndex, read_index

CENTERS = np.eye(3, 8, dtype=np.float32)


def write(kind, path):
    """A good file; returns what reads one: a path -> its content, comparable."""
    if kind == "index":
        GlyphIndex(["b", "a", "b"], CENTERS, CENTERS[0]).save(path)

        def read(path):
            index = read_index(path)
            return index.texts, index.features.tolist(), index.probe.tolist()
    else:
        save_characters(path, Characters(["b", "\u00e9"], CENTERS[:2], np.zeros(2, np.float32)), CENTERS)

        def read(path):
            found = load_characters(path, CENTERS)
            return found.text, found.centers.tolist(), found.offset.tolist()
    return read


def flips(content, stop=None, step=1):
    """The content with one bit flipped: each bit before byte `stop`, or one in `step` of each byte."""
    for at in range(len(content[:stop])):
        for bit in range(at % step, 8, step):
            yield content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1:]


@pytest.mark.parametrize("kind", ["index", "characters"])
def test_damage_is_one_line(tmp_path, kind, recwarn):
    """Cut at each byte, and with flipped bits: of the archive, whose checksums keep what is read as it was, and of the
    headers of arrays in an archive whose checksums are right."""
    whole, path = tmp_path / "whole.npz", tmp_path / "damaged.npz"
    read = write(kind, whole)
    with zipfile.ZipFile(whole) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}

    def reads(content):
        path.write_bytes(content)
        try:
            return read(path)
        except UserError as error:
            assert "damaged.npz: " in str(error) and "\n" not in str(error)

    def archive(name, content):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as packed:
            for other, theirs in members.items():
                packed.writestr(other, content if other == name else theirs)
        return file.getvalue()

    content, good = whole.read_bytes(), read(whole)
    assert reads(archive("none", b"")) == good and not any(reads(content[:stop]) for stop in range(len(content)))
    found = list(map(reads, flips(content, step=4)))
    assert None in found and all(one in (None, good) for one in found)
    for name, member in members.items():
        assert not any(reads(archive(name, member[:stop])) for stop in range(len(member)))
        assert None in [reads(archive(name, flipped)) for flipped in flips(member, member.index(b"\n") + 1)]
    assert not recwarn.list  # which would be further lines


@pytest.mark.parametrize("kind, module", [("index", glyph_index), ("characters", characters)])
def test_memory_is_bounded(tmp_path, kind, module, monkeypatch):
    """By what a packed file would hold, not by its size."""
    read = write(kind, tmp_path / "whole.npz")
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    read(tmp_path / "whole.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("text.npy", bytes(10_001))
    with pytest.raises(UserError, match="bomb.npz: larger than"):
        read(tmp_path / "bomb.npz")


def test_what_is_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_index(tmp_path / "missing.npz")
    with pytest.raises(UserError, match="not an index of glyphs"):
        read_index(tmp_path)
