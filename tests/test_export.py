"""The exported file: what it computes, what it says about itself, and that it exists only when it is right."""
import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from easydict import EasyDict
from torch import nn

import onnx_export
from configs import read_info
from inference.classify import DocClassifier
from inference.errors import UserError
from inference.model import load_model
from tasks.registration import RegistrationTask

SIZE, WIDTH = 16, 12
CONFIG = EasyDict(task="registration", image_size=SIZE, embedding_size=WIDTH, network="tiny", data=["somewhere"], lr=1e-3)


def item(model=None, folder=None, cfg=CONFIG):
    """What a registration run in `folder` exports."""
    info, evaluation = (read_info(folder), onnx_export.read_evaluation(folder)) if folder else ({}, None)
    return RegistrationTask.export(cfg, info, model or Tiny(), evaluation)


def describe(folder, cfg=CONFIG):
    return onnx_export.describe(item(folder=folder, cfg=cfg), cfg)


class Tiny(nn.Module):
    """Float [B, 3, S, S] in [0, 1] -> [B, D]; its batch norm and dropout act otherwise in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Hardswish(), nn.Flatten(),
                                    nn.Dropout(0.5), nn.Linear(8 * 4 * 4, WIDTH), nn.LayerNorm(WIDTH))
        self.layers[1].running_mean.uniform_(-1, 1)

    def forward(self, img):
        return self.layers(img - self.mean)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run with an evaluation, exported once; the file, and the model it came from."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps({"num_classes": 14544}))
    (folder / "eval.json").write_text(json.dumps({
        "auroc": 0.9, "thresholds": {"1e-1": 0.6, "1e-2": 0.7, "1e-3": None}, "too_few_negatives": ["1e-3"],
        "tpr_at_fpr": {"1e-1": 0.99, "1e-2": 0.9, "1e-3": None}, "pairs": {"positive": 90, "negative": 400}}))
    model, path = Tiny(), folder / "model.onnx"
    cosine = onnx_export.export(item(model), path, describe(folder))
    return path, model, cosine


def test_agrees_with_torch_for_any_batch(run_folder):
    path, model, cosine = run_folder
    assert cosine >= 0.99999
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5, 64):
        images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
        feats, = session.run(["feats"], {"img": images.numpy()})
        with torch.no_grad():
            expected = model.eval()(images)
        expected = (expected / expected.norm(dim=1, keepdim=True)).numpy()
        assert feats.shape == (batch, WIDTH) and np.abs(feats - expected).max() < 1e-5


def test_is_one_file_of_the_stated_form(run_folder):
    path, _, _ = run_folder
    assert sorted(file.name for file in path.parent.iterdir()) == ["eval.json", "model.onnx", "run.json"]
    proto = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", onnx_export.OPSET)]
    assert not any(node.metadata_props for node in proto.graph.node)  # paths of the machine that exported it
    port, = proto.graph.input
    assert port.name == "img" and port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [dim.dim_value or dim.dim_param for dim in port.type.tensor_type.shape.dim] == ["batch", 3, SIZE, SIZE]
    port, = proto.graph.output
    assert port.name == "feats"
    assert [dim.dim_value or dim.dim_param for dim in port.type.tensor_type.shape.dim] == ["batch", WIDTH]


def test_metadata(run_folder):
    metadata = load_model(run_folder[0]).metadata
    assert metadata["config"] == CONFIG and metadata["classes"] == 14544
    assert (metadata["image_size"], metadata["embedding_size"], metadata["channel_order"]) == (SIZE, WIDTH, "RGB")
    assert metadata["thresholds"] == {"1e-1": {"threshold": 0.6, "tpr": 0.99}, "1e-2": {"threshold": 0.7, "tpr": 0.9}}


def test_metadata_of_a_run_without_evaluation(tmp_path):
    metadata = describe(tmp_path)
    assert metadata["classes"] is None and metadata["thresholds"] is None
    (tmp_path / "run.json").write_text("[1]")
    assert describe(tmp_path)["classes"] is None
    known = '"too_few_negatives": [], "tpr_at_fpr": {"1e-1": 1}, "thresholds": {"1e-1": %s}}'
    for content in ("{", "[]", '{"thresholds": {"1e-1": 0.6}}', "[" * 100_000, *("{" + known % wrong for wrong in (
            "NaN", "null", '"high"', "2", "[]"))):
        (tmp_path / "eval.json").write_text(content)
        with pytest.raises(UserError, match="eval.json") as caught:
            describe(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "eval.json").write_text("{" + known % (1 + 2 ** -24))  # what an evaluation says where nothing may pass
    assert describe(tmp_path)["thresholds"]["1e-1"]["threshold"] > 1


def test_classify_sees_a_picture_as_torch_does(run_folder, tmp_path):
    """From the file on disk to the feature: color order, range, mean and layout are the same everywhere."""
    path, model, _ = run_folder
    bgr = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    classifier = DocClassifier(model=path, register_root=tmp_path, fpr=0.01)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(bgr[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255)[0].numpy()
    assert np.abs(classifier.extract_feature(tmp_path / "a.png") - expected / np.linalg.norm(expected)).max() < 1e-5
    assert classifier.threshold == 0.7 and classifier(bgr)[0] == "a"


def test_a_file_that_disagrees_is_not_written(run_folder, tmp_path, monkeypatch):
    other = Tiny()
    with torch.no_grad():
        other.layers[5].weight += 0.002 * torch.randn(other.layers[5].weight.shape)
    other = item(other)
    wrong = onnx_export._to_onnx(other.module.eval(), other)
    monkeypatch.setattr(onnx_export, "_to_onnx", lambda *_: wrong)
    path = tmp_path / "model.onnx"
    path.write_text("the last good one")
    with pytest.raises(UserError, match="not written.*cosine 0.99"):
        onnx_export.export(item(), path, describe(tmp_path))
    assert path.read_text() == "the last good one" and list(tmp_path.iterdir()) == [path]


def test_a_diverged_network_is_refused(tmp_path):
    model = Tiny()
    model.layers[5].bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged"):
        onnx_export.export(item(model), tmp_path / "model.onnx", describe(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_command_line(run_folder, tmp_path, monkeypatch, capfd):
    """One line on stdout and nothing else, whatever the exporter has to say."""
    monkeypatch.setattr(onnx_export, "load_run", lambda folder: (Tiny(), CONFIG))
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(tmp_path)])
    onnx_export.main()
    out, err = capfd.readouterr()
    assert out.startswith(f"{tmp_path / 'model.onnx'}: ") and "MB, lowest cosine with torch" in out
    assert out.count("\n") == 1 and err == ""


def test_a_folder_that_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as caught:
        onnx_export.run_cli(onnx_export.main)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "nowhere" in err and err.count("\n") == 1


def test_the_file_does_not_say_where_folders_lie(tmp_path):
    cfg = {**CONFIG, "data": ["/home/me/scans:8:labelled", "photos", "C:\\mine\\cards:24"], "output": "/secret/place/run",
           "pretrained": False, "cache": True, "eval_data": "there/eval", "resume": "auto"}
    told = describe(tmp_path, cfg)["config"]
    assert told == {**cfg, "data": ["scans:8:labelled", "photos", "cards:24"], "output": "run", "eval_data": "eval"}
