"""The hash of a model's network: against the package onnx, and against files that other code of the project rewrote."""
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from eval.calibrate import _replace_metadata
from inference.errors import UserError
from inference.model import METADATA_KEY, load_model
from inference.registry.graph import MAX_FIELDS, graph_hash
from tests.helpers.models import METADATA, write_model

SHIPPED = Path("inference/models/docmetric.onnx")


def by_onnx(path):
    """The hash as the package onnx sees the fields."""
    model = onnx.load(path)
    fit = json.loads(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)).get("fit", "squash")
    whole = hashlib.sha256(b"docmetric graph 1")
    for parts in ([model.graph], model.opset_import, model.functions):
        whole.update(len(parts).to_bytes(8, "big"))
        whole.update(b"".join(hashlib.sha256(part.SerializeToString()).digest() for part in parts))
    whole.update(fit.encode())
    return whole.hexdigest()


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.onnx")


def test_it_is_what_the_package_onnx_reads(model):
    assert graph_hash(model) == by_onnx(model) == graph_hash(model.read_bytes())
    assert graph_hash(SHIPPED) == by_onnx(SHIPPED)


def test_functions_count(model, tmp_path):
    proto = onnx.load(model)
    proto.functions.append(onnx.helper.make_function("own", "Same", ["x"], ["y"], [onnx.helper.make_node(
        "Identity", ["x"], ["y"])], [onnx.helper.make_opsetid("", 18)]))
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    assert graph_hash(other) == by_onnx(other) != graph_hash(model)


@pytest.mark.parametrize("path", ["tiny", "shipped"])
def test_new_thresholds_leave_it_as_it_is(model, tmp_path, path):
    if path == "shipped":
        model.write_bytes(SHIPPED.read_bytes())
    before, content = graph_hash(model), model.read_bytes()
    table = {"1e-2": {"threshold": .7, "tpr": .9}}
    _replace_metadata(model, load_model(model).metadata | {"thresholds": table, "margin": .01})
    assert model.read_bytes() != content and graph_hash(model) == before


def test_weights_operators_and_fit_change_it(model, tmp_path):
    hashes = {graph_hash(model), graph_hash(write_model(tmp_path / "mean.onnx", mean=np.nextafter(np.float32(.4), 1))),
              graph_hash(write_model(tmp_path / "pad.onnx", METADATA | {"fit": "pad"}))}
    proto = onnx.load(model)
    proto.opset_import[0].version += 1
    hashes.add(graph_hash(proto.SerializeToString()))
    assert len(hashes) == 4


def test_the_order_of_the_fields_does_not_count(model):
    """Each of them in a piece of protobuf by itself: joined in any order they are the same message."""
    proto, pieces = onnx.load(model), []
    names = [field.name for field, _ in proto.ListFields()]
    for name in names:
        piece = onnx.ModelProto()
        piece.CopyFrom(proto)
        for other in set(names) - {name}:
            piece.ClearField(other)
        pieces.append(piece.SerializeToString())
    assert len(pieces) > 3 and graph_hash(b"".join(reversed(pieces))) == graph_hash(model)


def test_what_is_no_model_is_refused_in_one_line(model, tmp_path):
    content = model.read_bytes()
    endless = b"\x80" * 100
    for data in (b"", b"not a model", endless, content[:len(content) // 2], content[:-1], b"\x3a\xff\xff\xff\xff\x7f",
                 b"\x40\x01" * (MAX_FIELDS + 1) + content, b"\x00\x00" + content, b"\x0b" + content,
                 *[bytes([number]) * 64 for number in range(256)]):
        with pytest.raises(UserError) as caught:
            graph_hash(data)
        assert "\n" not in str(caught.value)
    for metadata in (None, "[]", "{", "[" * 100_000, '{"fit": 3}'):
        with pytest.raises(UserError, match="not a model of this project"):
            graph_hash(write_model(tmp_path / "other.onnx", metadata))
    for path in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(UserError, match="cannot be read"):
            graph_hash(path)


def test_damage_anywhere_gives_a_hash_or_one_line(model):
    """Any byte of the file may be any other; what the hash does then is bounded and no exception but ours."""
    content, rng = model.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(content), 2000):
        damaged = bytearray(content)
        damaged[position] = rng.integers(256)
        try:
            assert len(graph_hash(bytes(damaged))) == 64
        except UserError:
            pass
