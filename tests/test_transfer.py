"""Export and import of a collection; what a file from elsewhere may hold."""
import hashlib
import io
import json
import stat
import struct
import tracemalloc
import zipfile
import zlib

import cv2
import numpy as np
import pytest

from inference.errors import UserError
from inference.registry import Registry, transfer
from inference.registry import archive as module
from tests.helpers.models import blocks, write_model


def png(seed, size=64):
    return cv2.imencode(".png", blocks(seed, size))[1].tobytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def new(tmp_path, model):
    """A function that makes an empty registry."""
    opened = []

    def make(name="store", **settings):
        opened.append(Registry.open(tmp_path / name, create=True, model=model, threads=1, **{"find": "never", **settings}))
        return opened[-1]

    yield make
    for registry in opened:
        registry.close()


@pytest.fixture
def filled(new):
    registry = new("filled")
    for seed, label in enumerate(["passport", "passport", "卡片", "a/b: c%", "receipt"]):
        registry.add(png(seed), label, force=True, source=f"{seed}.png")
    registry.add(png(20), "quad", force=True, quad=[(2, 3), (60, 1), (61, 62), (0, 60)], orientation=90)
    registry.add(png(21), kind="unknown", force=True)
    registry.add(png(22), "gone", force=True)
    registry.remove("gone")
    registry.set_threshold(0.83)
    registry.set_threshold(0.91, label="receipt")
    return registry


def state(registry):
    """All that an export keeps, whatever the ids."""
    types = {row["label"]: row["threshold"] for row in registry.types(limit=1000)}
    references = sorted((row["label"] or "", row["kind"], row["sha256"], str(row["quad"]), row["orientation"],
                         row["source"] or "") for row in registry.references(limit=1000))
    return types, references, registry.threshold


def test_what_is_exported_is_imported_as_one_event_that_can_be_undone(filled, new, tmp_path):
    assert filled.export(tmp_path / "x.zip") == dict(types=5, references=7, bytes=(tmp_path / "x.zip").stat().st_size)
    other = new("other")
    result = other.import_(tmp_path / "x.zip", who="me")
    assert result == dict(event=1, types=5, references=7, skipped=0)
    types, references, threshold = state(filled)
    named = [row if row[-1] else (*row[:-1], "x.zip") for row in references]  # without a source: from this file
    assert state(other) == (types, sorted(named), threshold)
    for row in other.references(limit=10):
        assert hashlib.sha256(other.picture(row["reference"])).hexdigest() == row["sha256"]
    event, = other.events()
    assert (event["what"], event["who"]) == ("import", "me")
    assert other(png(0)) == ("passport", pytest.approx(1))
    other.undo()
    assert other.labels == [] and other.references() == [] and other(png(0))[0] is None


def test_an_export_does_not_depend_on_when_and_takes_a_file_object(filled, tmp_path):
    buffer = io.BytesIO()
    filled.export(buffer)
    filled.export(tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == buffer.getvalue()


def test_an_unpacked_export_is_a_folder_of_reference_images(filled, new, tmp_path):
    filled.export(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        archive.extractall(tmp_path / "x")
    assert sorted(path.name for path in (tmp_path / "x" / "types").iterdir()) == ["a%2Fb%3A c%25", "passport", "quad",
                                                                                 "receipt", "卡片"]
    other = new("other")
    assert other.import_(tmp_path / "x" / "types")["types"] == 5
    with pytest.raises(UserError, match="unpacked; give the ZIP file"):
        other.import_(tmp_path / "x")


def test_a_zip_that_was_packed_again_is_taken(filled, new, tmp_path):
    filled.export(tmp_path / "x.zip")
    deflated = zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "x.zip") as old, deflated as packed:
        packed.writestr("types/", "")
        packed.writestr("__MACOSX/._x", b"what a Mac adds")
        for name in old.namelist():
            packed.writestr(name, old.read(name))
    assert new("other").import_(tmp_path / "y.zip")["references"] == 7


def test_conflicts(filled, new, tmp_path):
    filled.export(tmp_path / "x.zip")
    for choice, references in (("skip", 4), ("merge", 6)):
        other = new(choice)
        other.add(png(0), "passport", force=True)  # one of the two that the file has
        other.set_threshold(0.7)
        result = other.import_(tmp_path / "x.zip", choice)
        assert (result["types"], result["skipped"]) == (4, 7 - result["references"])
        assert len(other.references("passport")) == (1 if choice == "skip" else 2)
        assert result["references"] == references + (choice == "skip")
        assert other.threshold == 0.7 and other.type("receipt")["threshold"] == 0.91
        assert other.import_(tmp_path / "x.zip", choice) == dict(event=None, types=0, references=0, skipped=7)
        assert len(other.events()) == 3
    with pytest.raises(UserError, match="on_conflict replace: must be skip or merge"):
        other.import_(tmp_path / "x.zip", "replace")


def test_thresholds_of_another_model_stay_behind(filled, new, tmp_path):
    filled.export(tmp_path / "x.zip")
    changed = write_model(tmp_path / "other.onnx", mean=0.5)
    with Registry.open(tmp_path / "third", create=True, model=changed, find="never", threads=1) as other:
        other.import_(tmp_path / "x.zip")
        assert other.type("receipt")["threshold"] != 0.91 and other.threshold != 0.83


def test_heic_files_of_a_folder_are_imported(new, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    (tmp_path / "types" / "a").mkdir(parents=True)
    pixels = cv2.imdecode(np.frombuffer(png(1), np.uint8), cv2.IMREAD_COLOR)
    heif.from_bytes("BGR", pixels.shape[1::-1], pixels.tobytes()).save(tmp_path / "types" / "a" / "1.HEIC")
    registry = new()
    assert registry.import_(tmp_path / "types")["references"] == 1
    assert cv2.imdecode(np.frombuffer(registry.picture(1), np.uint8), cv2.IMREAD_COLOR).shape == pixels.shape


def test_a_folder_is_imported(new, tmp_path):
    for name, seed in (("a/1.png", 1), ("a/2.png", 2), ("b/c/3.png", 3), ("d.png", 4), (".hidden/5.png", 5),
                       ("a/again.png", 1)):
        path = tmp_path / "types" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    registry = new()
    assert registry.import_(tmp_path / "types") == dict(event=1, types=3, references=4, skipped=1)
    assert registry.labels == ["a", "b/c", "d"]
    (tmp_path / "types" / "a" / "bad.png").write_bytes(b"no image")
    (tmp_path / "types" / "new.png").write_bytes(png(9))
    with pytest.raises(UserError, match="bad.png: not an image"):
        registry.import_(tmp_path / "types", "merge")
    assert registry.labels == ["a", "b/c", "d"] and len(registry.events()) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in it"):
        registry.import_(tmp_path / "empty")


def test_progress_counts_every_picture(filled, new, tmp_path):
    filled.export(tmp_path / "x.zip")
    seen = []
    new("other").import_(tmp_path / "x.zip", progress=seen.append)
    assert seen == list(range(1, 8))


# ---------------------------------------------------------------- files from elsewhere
HEAD = dict(format=1, collection="x", find="never", orientation="upright", margin=None, threshold=None,
            model=dict(hash="0" * 64, name="m"), types=[dict(label="t", threshold=None)])


def line(**changes):
    picture = png(1)
    return dict(label="t", kind="type", file="types/t/1.png", sha256=hashlib.sha256(picture).hexdigest(), quad=None,
                found=None, orientation=0, source=None, who=None, created=0) | changes


def archive(tmp_path, head=HEAD, lines=None, members=None, mode="w", compression=zipfile.ZIP_STORED):
    """A ZIP file like that of an export, with changes. head, lines: what is written as JSON, or bytes."""
    path = tmp_path / "evil.zip"
    lines = [line()] if lines is None else lines
    with zipfile.ZipFile(path, mode, compression) as made:
        if head is not None:
            made.writestr("registry.json", head if isinstance(head, bytes) else json.dumps(head))
        if lines != b"missing":
            made.writestr("references.jsonl", lines if isinstance(lines, bytes) else
                          "".join(json.dumps(one) + "\n" for one in lines))
        for name, content in (members or [("types/t/1.png", png(1))]):
            made.writestr(name, content)
    return path


def info(name, mode=stat.S_IFREG, **more):
    made = zipfile.ZipInfo(name)
    made.external_attr = (mode | 0o777) << 16
    for key, value in more.items():
        setattr(made, key, value)
    return made


def refused(registry, path, match):
    """One line, and nothing was changed."""
    with pytest.raises(UserError, match=match) as caught:
        registry.import_(path)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 500
    assert registry.labels == [] and registry.events() == [] and registry.references(limit=5) == []


def test_this_archive_itself_is_fine(new, tmp_path):
    assert new().import_(archive(tmp_path))["references"] == 1


@pytest.mark.parametrize("name", ["../evil.png", "types/../../evil.png", "/etc/evil.png", "types\\evil.png", "C:/evil.png",
                                  "types/new\nline.png", "types/\x1b[31m.png", "types/\u202egnp.png"])
def test_names_that_lead_elsewhere_are_refused(new, tmp_path, name):
    refused(new(), archive(tmp_path, members=[("types/t/1.png", png(1)), (info(name), png(2))]), "holds the name")
    assert not list(tmp_path.rglob("*evil.png"))


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(new, tmp_path, mode):
    refused(new(), archive(tmp_path, members=[(info("types/t/1.png", mode), b"/etc/passwd")]), "is a link or no plain file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(new, tmp_path):
    refused(new(), archive(tmp_path, members=[("types/t/1.png", png(1)), ("types/t/1.png", png(2))]), "1.png twice")
    path = archive(tmp_path)
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("registry.json", b"{}")
    refused(new(), path, "registry.json twice")


def test_bombs_are_refused_before_they_are_unpacked(new, tmp_path):
    zeros = bytes(200 << 20)
    path = archive(tmp_path, members=[("types/t/1.png", zeros)], compression=zipfile.ZIP_DEFLATED)
    del zeros
    registry = new()
    registry.snapshot()
    tracemalloc.start()
    refused(registry, path, "that unpack to 209,7")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(new, tmp_path):
    path = archive(tmp_path, members=[(info("types/t/1.png", compress_type=zipfile.ZIP_DEFLATED), bytes(30 << 20))])
    data, size = bytearray(path.read_bytes()), struct.pack("<I", 30 << 20)
    while (at := data.find(size)) >= 0:  # in the header of the member, and in the directory
        data[at:at + 4] = struct.pack("<I", 100)
    path.write_bytes(data)
    refused(new(), path, "evil.zip")


def test_more_files_than_an_export_has_are_refused(new, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_REFERENCES", 50)
    refused(new(), archive(tmp_path, members=[(f"types/t/{n}.png", b"") for n in range(120)]), "files, more than the limit")
    refused(new(), archive(tmp_path, lines=[line()] * 60), "line 51: too many lines")
    monkeypatch.setattr(module, "MAX_NAMES", 1000)
    path = archive(tmp_path, members=[(f"types/t/{n}.png", b"") for n in range(120)])
    refused(new(), path, "a directory of")
    data = path.read_bytes()  # its size in the record of ZIP64 too, and a small one in that of plain ZIP
    count, size, offset = struct.unpack_from("<HII", data, len(data) - 12)
    path.write_bytes(data[:-22] + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
                     + struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1) + data[-22:-10]
                     + struct.pack("<IIH", 500, offset, 0))
    refused(new(), path, "a directory of")


def test_an_export_that_nobody_could_import_is_not_written(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "MOST_REFERENCES", 5)
    with pytest.raises(UserError, match="7 references are more than the 5"):
        filled.export(tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("flags", [dict(flag_bits=1), dict(compress_type=zipfile.ZIP_BZIP2),
                                   dict(compress_type=zipfile.ZIP_LZMA)])
def test_encrypted_and_unusual_members_are_refused(new, tmp_path, flags):
    path = archive(tmp_path, members=[(info("types/t/1.png", compress_type=flags.get("compress_type", 0)), png(1))])
    if "flag_bits" in flags:
        data = bytearray(path.read_bytes())
        at = data.rfind(b"PK\1\2")
        data[at + 8] |= 1
        path.write_bytes(data)
    refused(new(), path, "is encrypted, or compressed in an unusual way")


def test_a_picture_that_is_another_one_is_refused(new, tmp_path):
    refused(new(), archive(tmp_path, members=[("types/t/1.png", png(2))]), "is not the image that was exported")
    refused(new(), archive(tmp_path, members=[("types/u/1.png", png(1))]), "line 1: there is no types/t/1.png")
    refused(new(), archive(tmp_path, lines=[line(file="registry.json", sha256="0" * 64)]), "is not the image")


def test_a_picture_that_is_no_image_is_refused_and_the_good_ones_with_it(new, tmp_path):
    text = b"no image"
    lines = [line(), line(file="types/t/2.png", sha256=hashlib.sha256(text).hexdigest())]
    refused(new(), archive(tmp_path, lines=lines, members=[("types/t/1.png", png(1)), ("types/t/2.png", text)]),
            r"evil.zip: types/t/2.png: not an image")
    bomb = bytearray(png(1))  # a PNG that says that it has 60000 x 60000 pixels
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    lines[1]["sha256"] = hashlib.sha256(bomb).hexdigest()
    refused(new(), archive(tmp_path, lines=lines, members=[("types/t/1.png", png(1)), ("types/t/2.png", bytes(bomb))]),
            "larger than the limit")


@pytest.mark.parametrize("head", [
    b"", b"null", b"[]", b"5", b"\xff\xfe", b"{", b'{"format": 1}', b"[" * 100_000, b'{"format": 1, "format": 1}',
    HEAD | {"model": 5}, HEAD | {"types": 5}, HEAD | {"types": [5]}, HEAD | {"types": [{"label": 5}]},
    HEAD | {"types": [{"label": ""}]}, HEAD | {"types": [{"label": "a\nb"}]}, HEAD | {"types": [{"label": "x" * 500}]},
    HEAD | {"types": [{"label": "a", "threshold": "0.5"}]}, HEAD | {"types": [{"label": "a", "threshold": 5}]},
    HEAD | {"threshold": -1}, HEAD | {"threshold": True}, HEAD | {"threshold": []},
    json.dumps(HEAD).replace("null", "NaN").encode()])
def test_a_head_of_any_other_form_is_refused(new, tmp_path, head):
    refused(new(), archive(tmp_path, head=head), "registry.json is not one of this program")


def test_the_head_of_a_later_program_is_refused(new, tmp_path):
    refused(new(), archive(tmp_path, head=HEAD | {"format": 2}), "its format is 2, this program reads 1")


@pytest.mark.parametrize("changes", [
    dict(label=None), dict(label=5), dict(label=""), dict(label="a\x00b"), dict(label="\x1b[2J"), dict(label="a\u202eb"),
    dict(label="x" * 201), dict(kind="other"), dict(kind="unknown"), dict(kind=["type"]), dict(file=5), dict(file=None),
    dict(sha256=None), dict(quad=5), dict(quad=[[0, 0]]), dict(quad=[["a", 0]] * 4), dict(quad=[[1e400, 0]] * 4),
    dict(orientation=45), dict(orientation="90"), dict(orientation=[]), dict(source=5), dict(source="a\nb"),
    dict(source="x" * 501)])
def test_a_line_of_any_other_form_is_refused(new, tmp_path, changes):
    refused(new(), archive(tmp_path, lines=[line(), line(**changes)]), "references.jsonl, line 2: no reference")


@pytest.mark.parametrize("lines", [b"null\n", b"\xff\n", b"{\n", b"[" * 60_000 + b"\n", b"5\n", b"\n", b"{}\n"])
def test_a_line_that_is_no_object_is_refused(new, tmp_path, lines):
    refused(new(), archive(tmp_path, lines=lines), "line 1: no reference")


def test_a_line_without_an_end_is_refused(new, tmp_path):
    refused(new(), archive(tmp_path, lines=b" " * (module.MAX_LINE + 5)), "line 1: too long")


def test_corners_that_cannot_be_used_are_refused(new, tmp_path):
    refused(new(), archive(tmp_path, lines=[line(quad=[[0, 0], [5, 5], [5, 0], [0, 5]])]), "1.png: corners")


@pytest.mark.parametrize("missing", ["registry.json", "references.jsonl"])
def test_other_zip_files_are_refused(new, tmp_path, missing):
    path = archive(tmp_path, **({"head": None} if missing == "registry.json" else {"lines": b"missing"}))
    refused(new(), path, f"has no {missing}")


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", b"PK\5\6" + bytes(18), b"PK\5\6" + b"\xff" * 18,
                                     bytes(100_000)])
def test_what_is_no_zip_file_is_refused(new, tmp_path, content):
    path = tmp_path / "evil.zip"
    path.write_bytes(content)
    refused(new(), path, "evil.zip")


def test_a_truncated_or_damaged_archive_is_refused_or_the_same(filled, new, tmp_path):
    filled.export(tmp_path / "x.zip")
    whole, other = (tmp_path / "x.zip").read_bytes(), new("other")
    rng, path = np.random.default_rng(0), tmp_path / "evil.zip"
    for size in (len(whole) - 1, len(whole) // 2, len(whole) // 3, 100, 10):
        path.write_bytes(whole[:size])
        refused(other, path, "evil.zip")
    same = state(filled)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            other.import_(path)
        except UserError as error:
            assert str(error).isprintable() and other.labels == []
        else:  # the bit stands in the date of a file or the like, or in a number that nothing else tells
            assert sorted(row[2] for row in state(other)[1]) == sorted(row[2] for row in same[1])
            other.undo()


def test_paths_that_are_no_file(new, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        new().import_(tmp_path / "missing.zip")
    with pytest.raises(UserError, match="cannot be written"):
        new().export(tmp_path / "no" / "such" / "folder.zip")


def test_an_export_of_a_store_with_a_damaged_picture_leaves_no_file(filled, tmp_path):
    path = filled.store.blobs.path(filled.references()[0]["sha256"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="a registered image is damaged"):
        filled.export(tmp_path / "x.zip")
    assert not list(tmp_path.glob("*x.zip*"))


def test_folder_names_are_safe_on_any_system():
    for label, name in (("a/b", "a%2Fb"), ("..", "%2E%2E"), (".hidden", "%2Ehidden"), ("ends.", "ends%2E"),
                        ("a:b*?", "a%3Ab%2A%3F"), ("卡片", "卡片"), ("50%", "50%25")):
        assert transfer.folder_of(label) == name
    assert len(transfer.folder_of("卡" * 200).encode()) <= 200
