"""Exported networks in 16 and 8 bits: what they compute, what is refused, and what the file says."""
import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from easydict import EasyDict
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array
from torch import nn

import onnx_export
from backbones.quantize import half_weights, large_layers, to_int8
from eval import evaluate_folder
from inference.errors import UserError
from inference.model import load_model
from tasks.registration import RegistrationTask

SIZE, WIDTH = 16, 12
CONFIG = EasyDict(task="registration", image_size=SIZE, embedding_size=WIDTH, network="small", data=[])


class Small(nn.Module):
    """Float [B, 3, S, S] -> [B, D], with layers of each kind: two are large, `dense` and `embed`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 128, 3, stride=2, padding=1), nn.Hardswish())
        self.depthwise = nn.Conv2d(128, 128, 11, padding=5, groups=128)  # 15,488 weights
        self.gate = nn.Conv2d(128, 128, 1)  # large enough, but of a single pixel
        self.dense = nn.Sequential(nn.Conv2d(128, 128, 1), nn.Hardswish())
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(128 * 16, WIDTH))

    def forward(self, img):
        x = self.depthwise(self.stem(img))
        x = self.dense(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
        return self.embed(nn.functional.avg_pool2d(x, 2))


def draw(folder, count, seed=0):
    """`count` images, each of four colors."""
    folder.mkdir(parents=True)
    for index, colors in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)):
        cv2.imwrite(str(folder / f"{index:03}.png"), cv2.resize(colors, (24, 24), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The fp32 file of `Small`, with a threshold table."""
    folder = tmp_path_factory.mktemp("exact")
    item = RegistrationTask.export(CONFIG, {}, Small())
    metadata = onnx_export.describe(item, CONFIG) | {"thresholds": {"1e-1": {"threshold": 0.6, "tpr": 0.9}}}
    onnx_export.export(item, folder / "model.onnx", metadata)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return sorted(draw(tmp_path_factory.mktemp("images") / "all", 40).iterdir())


def test_only_large_dense_layers_are_chosen(exact):
    proto = onnx.load(exact)
    chosen = [node for node in proto.graph.node if node.name in large_layers(proto)]
    shapes = {weight.name: tuple(weight.dims) for weight in proto.graph.initializer}
    assert [(node.op_type, shapes[node.input[1]]) for node in chosen] == [
        ("Conv", (128, 128, 1, 1)), ("Gemm", (WIDTH, 128 * 16))]
    assert chosen[0].input[0] not in {node.output[0] for node in proto.graph.node if node.op_type == "ReduceMean"}


def test_a_layer_computes_what_the_formula_says():
    """y = s_y * round((sum_k w_k (x_k - z_x) + b) s_x s_w / s_y), all sums in integers, against ONNX Runtime."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(128, 3, 7, 7)).astype(np.float32), random.normal(size=128).astype(np.float32)
    graph = make_graph(
        [make_node("Conv", ["img", "w", "b"], ["feats"], "conv")], "one",
        [make_tensor_value_info("img", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [make_tensor_value_info("feats", onnx.TensorProto.FLOAT, ["batch", 128, 2, 2])],
        [from_array(weight, "w"), from_array(bias, "b")])
    proto = make_model(graph, opset_imports=[make_opsetid("", onnx_export.OPSET)], ir_version=10)
    images = random.integers(10, 250, (8, 8, 8, 3), np.uint8)
    quantized = to_int8(proto, images)

    constants = {tensor.name: to_array(tensor) for tensor in quantized.graph.initializer}
    made_by = {node.output[0]: node for node in quantized.graph.node}
    conv = next(node for node in quantized.graph.node if node.op_type == "Conv")
    (s_x, z_x), (s_w, _) = ([constants[name] for name in made_by[port].input[1:3]] for port in conv.input[:2])
    q_w, q_b = (constants[made_by[port].input[0]].astype(np.int64) for port in conv.input[1:])
    s_y, z_y = (constants[name] for name in made_by["feats"].input[1:3])
    assert z_x.dtype == np.uint8 and constants[made_by[conv.input[1]].input[0]].dtype == np.int8
    assert 60 <= np.abs(q_w).max() <= 64  # 7 bits
    assert np.abs(q_w * s_w[:, None, None, None] - weight).max() <= s_w.max() * 0.51
    assert abs(s_x * 255 - images.max((1, 2, 3)).mean() / 255) < .01  # the mean of the images' ranges, which include 0

    x = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    q_x = np.clip(np.rint(x / s_x) + z_x, 0, 255).astype(np.int64) - z_x
    windows = np.lib.stride_tricks.sliding_window_view(q_x, (7, 7), axis=(2, 3))  # (N, 3, 2, 2, 7, 7)
    sums = np.einsum("nchwij,kcij->nkhw", windows, q_w) + q_b[:, None, None]
    q_y = np.clip(np.rint(sums * (s_x * s_w / s_y)[:, None, None]) + z_y, 0, 255) - z_y
    feats, = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"img": x})
    steps = np.abs(feats / s_y - q_y)
    assert steps.max() < 1.01 and (steps > 0.01).mean() < 0.01  # rounding in float32 may fall to the other side


def test_half_weights_are_those_weights_rounded(exact, files):
    proto = onnx.load(exact)
    half = half_weights(proto)
    rounded = onnx.load(exact)
    for weight in rounded.graph.initializer:
        if len(weight.dims) > 1 and weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(from_array(to_array(weight).astype(np.float16).astype(np.float32), weight.name))
    images = np.random.default_rng(0).random((5, 3, SIZE, SIZE), np.float32)
    feats, expected, before = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            ["feats"], {"img": images})[0] for model in (half, rounded, proto))
    assert np.array_equal(feats, expected) and 0 < np.abs(feats - before).max() < 1e-3
    assert half.ByteSize() < 0.6 * proto.ByteSize()


def test_fp16_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "load_run", lambda folder: (Small(), CONFIG))
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(tmp_path), "--fp16"])
    onnx_export.main()
    assert 0.99999 <= float(capsys.readouterr().out.rpartition("lowest cosine with torch ")[2]) <= 1
    assert load_model(tmp_path / "model.onnx").metadata["precision"] == "fp16"


def test_int8_command(tmp_path, monkeypatch, capfd):
    """One line on stdout, the thresholds those of this very file, and the same input, output and batches."""
    draw(tmp_path / "data", 40)
    for seed in range(4):
        draw(tmp_path / "types" / str(seed), 3, seed)
    (tmp_path / "eval.json").write_text(json.dumps({"thresholds": {}, "too_few_negatives": [], "tpr_at_fpr": {},
                                                    "data": str(tmp_path / "types")}))
    monkeypatch.setattr(onnx_export, "load_run", lambda folder: (Small(), EasyDict(CONFIG, data=[f"{tmp_path / 'data'}:8"])))
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(tmp_path), "--int8"])
    onnx_export.main()
    out, err = capfd.readouterr()
    path = tmp_path / "model.onnx"
    assert out.startswith(f"{path}: ") and "on other images: mean 0.99" in out and out.count("\n") == 1 and err == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "eval.json", "model.onnx", "types"]
    model = load_model(path)
    assert model.metadata["precision"] == "int8" and model.metadata["image_size"] == SIZE
    measured = evaluate_folder(model.embed, tmp_path / "types", SIZE, baseline=False).verification
    assert 50 <= measured.negative < 100
    assert model.metadata["thresholds"] == {rate: {"threshold": measured.thresholds[rate], "tpr": measured.tpr_at_fpr[rate]}
                                            for rate in ("1e-1", "5e-2", "2e-2")}
    proto = onnx.load(path)
    assert [prop.key for prop in proto.metadata_props] == ["docmetric"]
    assert sum(node.op_type == "QuantizeLinear" for node in proto.graph.node) == 4  # before and after two layers
    for batch in (1, 2, 5):
        assert model.session.run(["feats"], {"img": np.zeros((batch, 3, SIZE, SIZE), np.float32)})[0].shape == (batch, WIDTH)


def test_features_are_near_and_thresholds_go_where_they_cannot_be_measured(exact, files, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    for evaluated_on in (None, str(tmp_path / "gone")):
        mean, lowest = onnx_export.export_int8(exact, path, files, evaluated_on)
        err = capsys.readouterr().err
        assert err.startswith(f"warning: {path}: has no thresholds") and "--calibrate" in err and err.count("\n") == 1
        assert load_model(path).metadata["thresholds"] is None
    assert mean > onnx_export.MIN_INT8_COSINE and mean >= lowest
    first, second = load_model(exact), load_model(path)
    images = np.stack([first.prepare(file) for file in files[3::4]])
    cosines = (first.embed(images) * second.embed(images)).sum(axis=1)
    assert (cosines.mean(), cosines.min()) == pytest.approx((mean, lowest), abs=1e-6)
    assert path.stat().st_size < 0.6 * exact.stat().st_size


def test_refusals_leave_the_last_file(exact, files, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("the last good one")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    for few in ([], files[:onnx_export.MIN_IMAGES - 1], [broken] * 30):
        with pytest.raises(UserError, match="--calibration DIR"):
            onnx_export.export_int8(exact, path, few, None)
    monkeypatch.setattr(onnx_export, "MIN_INT8_COSINE", 1.1)
    with pytest.raises(UserError, match="not written, int8 changes.*--fp16"):
        onnx_export.export_int8(exact, path, files, None)
    assert path.read_text() == "the last good one"
    assert sorted(tmp_path.iterdir()) == [broken, path]
    small = make_model(make_graph([make_node("Relu", ["img"], ["feats"])], "none", [
        make_tensor_value_info("img", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])], [
        make_tensor_value_info("feats", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])]))
    with pytest.raises(UserError, match="no layer of at least.*--fp16"):
        to_int8(small, np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("arguments, said", [
    (["--int8"], "nowhere: no such folder; check the path; or name others with --calibration DIR"),
    (["--int8", "--calibration", "gone"], "gone: no such folder"),
    (["--calibration", "gone"], "of use to --int8 alone"),
    (["--int8", "--fp16"], "not allowed with")])
def test_mistakes_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "load_run", lambda folder: (Small(), EasyDict(CONFIG, data=["nowhere:24"])))
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as caught:
        onnx_export.run_cli(onnx_export.main)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
