"""Glyphs: SupCon and its training on several ranks, the recognizer's evaluation, its index and look-alikes."""
import json
import math

import cv2
import numpy as np
import pytest
import torch

import onnx_export
from backbones import get_model
from backbones.localizer import get_localizer
from configs import load_config, load_run, read_info
from dataset import HardNegatives
from engine.distributed import Ranks
from eval.__main__ import main as evaluate
from eval.glyphs import evaluate_glyphs, write_artifacts, write_look_alikes
from inference.crops import class_folder
from inference.errors import UserError
from inference.glyph_index import GlyphIndex, probe_of, read_index
from inference.model import load_model
from losses import supcon
from tasks import get_task
from tasks.glyphs import GlyphsTask
from tests.helpers.models import METADATA, SIZE, WIDTH, blocks, save, view_of, write_model
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, losses_of, stop_and_resume
from train_v2 import train

TEXTS = ["a", "b", " ", "\u3000", "an", "é", "\t"]  # white space is a class like any other


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """REFERENCES with one image of each of TEXTS, and CROPS with three more of each, and two of a class without."""
    place = tmp_path_factory.mktemp("glyphs")
    for kind, text in enumerate(TEXTS):
        save(place / "references" / class_folder(text) / "font.png", view_of(kind, 0))
        for number in (1, 2, 3):
            save(place / "crops" / class_folder(text) / f"{number}.png", view_of(kind, number))
    for number in (1, 2):
        save(place / "crops" / class_folder("z") / f"{number}.png", view_of(99, number))
    return place


# ---------------------------------------------------------------- SupCon
def test_supcon_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([4, 9, 4, 4, 9, 0, 4])
    found, has = supcon(x, labels, 0.3)
    z = [row / math.sqrt(sum(v * v for v in row)) for row in x.detach().numpy()]
    for i in range(7):
        others = [math.exp(float(z[i] @ z[a]) / 0.3) for a in range(7) if a != i]
        positives = [p for p in range(7) if p != i and labels[p] == labels[i]]
        terms = [-math.log(math.exp(float(z[i] @ z[p]) / 0.3) / sum(others)) for p in positives]
        assert has[i] == bool(positives) and found[i].item() == pytest.approx(np.mean(terms) if terms else 0)
    assert torch.autograd.gradcheck(lambda x: supcon(x, labels, 0.3)[0], x)
    with pytest.raises(ValueError, match="temperature=0"):
        supcon(x, labels, 0)


def test_supcon_pulls_a_class_together():
    x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    assert supcon(x, torch.tensor([0, 0, 1, 1]))[0].max() < 0.1 < supcon(x, torch.tensor([0, 1, 0, 1]))[0].min()


# ---------------------------------------------------------------- training
def settings(place, output, *more):
    """The config of a run of four steps of SupCon over the crops."""
    return load_config("glyphs_supcon", [
        f"data={place / 'crops'}:1:labelled", f"output={output}", "network=test_convnext", "norm=ln", "image_size=32",
        "embedding_size=16", "samples_per_class=2", "batch_size=10", "max_steps=4", "num_workers=0", "cache=false",
        "log_every=1", "device=cpu", *more])


def in_double(rank, world, place, output):
    torch.set_default_dtype(torch.float64)
    train(settings(place, f"{output}/{world}"), Ranks(rank, world, CPU))


def test_supcon_on_one_and_three_ranks_is_the_same_training(glyphs, tmp_path):
    """Ten samples in parts of 4, 3 and 3: a sample's positives and negatives lie on other ranks."""
    for world in (1, 3):
        run_ranks(world, in_double, glyphs, tmp_path)
    first, other = losses_of(tmp_path / "1"), losses_of(tmp_path / "3")
    assert len(first) == 4 and np.isfinite(first).all() and len(set(first)) == 4
    assert np.allclose(first, other, rtol=1e-6)      # the embeddings cross the ranks in float32


def test_a_resumed_run_is_the_run_itself(glyphs, tmp_path):
    more = "max_steps=4", "save_every=2"
    _, halves = stop_and_resume(3, lambda output, *keys: settings(glyphs, output, *more, *keys), tmp_path, GlyphsTask)
    with pytest.raises(UserError, match="its loss is 'supcon', here it is 'margin'"):
        train(settings(glyphs, halves, "resume=auto", *more, "loss=margin"), Ranks(0, 1, CPU))


@pytest.fixture(scope="module")
def trained(glyphs, tmp_path_factory):
    """The folder of a run with class centers that was evaluated, and its exported model."""
    output = tmp_path_factory.mktemp("run") / "run"
    train(settings(glyphs, output, "loss=margin", "max_steps=30", "augment=none", "lr=1e-2", "crop=line",
                   f"references={glyphs / 'references'}", f"eval_data={glyphs / 'crops'}"), Ranks(0, 1, CPU))
    network, cfg = load_run(output)
    item = get_task("glyphs").export(cfg, read_info(output), network)
    onnx_export.export(item, output / "model.onnx", onnx_export.describe(item, cfg))
    return output


def test_a_run_is_evaluated_exported_and_has_hard_negatives_for_the_next(glyphs, trained, tmp_path):
    found = json.loads((trained / "eval.json").read_text())
    assert found["coverage"] == 21 / 23 and found["missing"] == {"122": 2}
    assert found["top1"] > 2 / len(TEXTS)                                 # chance is 1 in 7
    model = load_model(trained / "model.onnx")
    assert model.metadata["crop"] == "line" and model.fit == "pad"
    again = evaluate_glyphs(model.embed, glyphs / "references", glyphs / "crops", 32)
    assert again.top1 == found["top1"]
    look_alikes = [line.split("\t") for line in (trained / "look_alikes.txt").read_text().splitlines()]
    assert sorted(row[0] for row in look_alikes) == sorted(map(class_folder, TEXTS))
    assert all(len(set(row)) == len(row) == len(TEXTS) for row in look_alikes)
    train(settings(glyphs, tmp_path / "next", "sampler=hard_negatives", f"look_alikes={trained / 'look_alikes.txt'}",
                   "look_alike_classes=4", "batch_size=8"), Ranks(0, 1, CPU))
    assert len(losses_of(tmp_path / "next")) == 4


@pytest.mark.parametrize("given, says", [
    (["sampler=permutation"], "use sampler=per_class"), (["samples_per_class=1"], "2 or more"),
    (["eval_data=x"], "give both or neither"), (["references=x"], "give both or neither"), (["crop=wide"], "tight, line"),
    (["temperature=0"], "above 0")])
def test_wrong_settings_are_named(given, says):
    with pytest.raises(UserError, match=says):
        load_config("glyphs_supcon", given)


def test_the_classifier_mode_is_a_classifier_of_padded_glyphs(glyphs, tmp_path):
    cfg = load_config("glyphs_classifier", [f"data={glyphs / 'crops'}:1:labelled", f"output={tmp_path}", "batch_size=8",
                                            "max_steps=2", "num_workers=0", "cache=false", "device=cpu"])
    train(cfg, Ranks(0, 1, CPU))
    assert sorted(read_info(tmp_path)["classes"]) == sorted(map(class_folder, [*TEXTS, "z"])) and cfg.fit == "pad"


def test_plain_convolutions_are_networks_as_timms_are():
    for name, least in (("plain_conv", 163_672), ("plain_conv_wide", 278_112)):
        network = get_model(load_config("glyphs", [f"network={name}"]))
        assert sum(p.numel() for p in network.features.parameters()) == least
        assert network.eval()(torch.zeros(2, 3, 48, 48)).shape == (2, 128)
        localizer = get_localizer(load_config("lines_localizer", [f"network={name}", "image_size=64"]), 2)
        assert [out.shape[-1] for out in localizer.eval()(torch.zeros(1, 3, 64, 64))] == [16, 16, 4, 4]
        with pytest.raises(UserError, match=f"no weights for {name}"):
            get_model(load_config("glyphs", [f"network={name}", "pretrained=true"]))


# ---------------------------------------------------------------- evaluation
@pytest.fixture
def model(tmp_path):
    return load_model(write_model(tmp_path / "model.onnx"))


def test_the_nearest_reference_counts_and_a_class_without_one_is_a_miss(glyphs, model):
    found = evaluate_glyphs(model.embed, glyphs / "references", glyphs / "crops", SIZE)
    right = 0
    references = {text: view_of(kind, 0) for kind, text in enumerate(TEXTS)}
    features = {text: model.embed(model.prepare(image)[None])[0] for text, image in references.items()}
    for kind, text in enumerate(TEXTS):
        for number in (1, 2, 3):
            query = model.embed(model.prepare(view_of(kind, number))[None])[0]
            right += max(features, key=lambda name: features[name] @ query) == text
    assert 7 < right < 21                                                  # neither trivial nor impossible
    assert found.top1 == right / 23 and found.coverage == 21 / 23
    as_dict = found.as_dict()
    assert as_dict["top1_covered"] == right / 21 and as_dict["missing"] == {"122": 2}
    assert sum(count for *_, count in as_dict["confusions"]) == 23 - right
    assert "'z'" in found.table() and "coverage" in found.table()


def test_the_artifacts_keep_every_class(glyphs, model, tmp_path, capsys):
    """White space too, which a list separated by spaces would lose, and shift every label after it."""
    report = tmp_path / "report"
    evaluate(["--model", str(tmp_path / "model.onnx"), "--references", str(glyphs / "references"), "--data",
              str(glyphs / "crops"), "--report", str(report), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((report / "metrics.json").read_text())
    listed = json.loads((report / "references.json").read_text(encoding="utf-8"))
    assert sorted(entry["text"] for entry in listed) == sorted(TEXTS)
    index = read_index(report / "index.npz", probe_of(model.embed, SIZE))
    assert index.classes == sorted(TEXTS)
    for kind, text in enumerate(TEXTS):
        names, cosines = index.nearest(model.embed(model.prepare(view_of(kind, 0))[None]), 3)
        assert names[0][0] == text and cosines[0, 0] == pytest.approx(1, abs=1e-5) and len(set(names[0])) == 3
    sheet = cv2.imread(str(report / "nearest.png"))
    assert sheet.shape == (23 * 78, 64 * (1 + len(TEXTS)), 3)
    lines = [line.split("\t") for line in (report / "look_alikes.txt").read_text().split("\n") if line]
    HardNegatives(report / "look_alikes.txt", [row[0] for row in lines], torch.arange(len(lines)), 4, 1, 0)


def test_look_alikes_are_the_nearest_of_the_classes_means(tmp_path, glyphs, model):
    found = evaluate_glyphs(model.embed, glyphs / "crops", glyphs / "crops", SIZE)
    write_look_alikes(tmp_path / "all", found)
    means = {}
    for text, kind in [*((text, kind) for kind, text in enumerate(TEXTS)), ("z", 99)]:
        numbers = (1, 2) if text == "z" else (1, 2, 3)
        mean = np.mean([model.embed(model.prepare(view_of(kind, number))[None])[0] for number in numbers], 0)
        means[class_folder(text)] = mean / np.linalg.norm(mean)
    for line in (tmp_path / "all").read_text().splitlines():
        name, *others = line.split("\t")
        assert others == sorted(set(means) - {name}, key=lambda other: -means[other] @ means[name])
    write_look_alikes(tmp_path / "some", found, ["97", "98", "unknown"])
    assert (tmp_path / "some").read_text() == "97\t98\n98\t97\n"


def test_folders_that_are_no_code_points_are_evaluated_but_make_no_index(tmp_path, model):
    for name in ("alpha", "beta"):
        for number in (0, 1):
            save(tmp_path / "signs" / name / f"{number}.png", blocks(len(name)))
    found = evaluate_glyphs(model.embed, tmp_path / "signs", tmp_path / "signs", SIZE)
    assert found.top1 == 1 and found.coverage == 1
    with pytest.raises(UserError, match="'alpha' is not a class"):
        write_artifacts(tmp_path / "report", found)


def test_files_that_cannot_be_read_are_listed(tmp_path, model):
    for name in ("97", "98"):
        save(tmp_path / "r" / name / "0.png", blocks(int(name)))
    (tmp_path / "r" / "98" / "1.png").write_bytes(b"no image")
    found = evaluate_glyphs(model.embed, tmp_path / "r", tmp_path / "r", SIZE).as_dict()
    assert found["crops"] == 2 and [entry["file"] for entry in found["unreadable"]] == ["98/1.png"] * 2
    (tmp_path / "bad" / "97").mkdir(parents=True)
    (tmp_path / "bad" / "97" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of its images can be used"):
        evaluate_glyphs(model.embed, tmp_path / "bad", tmp_path / "r", SIZE)


# ---------------------------------------------------------------- the index
def test_an_index_of_another_model_or_none_is_refused(tmp_path, model):
    features = np.eye(3, WIDTH, dtype=np.float32)
    index = GlyphIndex(["b", "a", "b"], features, probe_of(model.embed, SIZE))
    assert index.classes == ["a", "b"] and index.nearest(features[2:], 5)[0] == [["b", "a"]]
    index.save(tmp_path / "index.npz")
    other = load_model(write_model(tmp_path / "other.onnx", mean=0.1))
    with pytest.raises(UserError, match="made with another model"):
        read_index(tmp_path / "index.npz", probe_of(other.embed, SIZE))
    with pytest.raises(UserError, match="made with another model"):
        read_index(tmp_path / "index.npz", np.ones(7, np.float32))
    with pytest.raises(UserError, match="no such file"):
        read_index(tmp_path / "missing.npz")
    stored = dict(np.load(tmp_path / "index.npz"))
    for key, value in (("text", stored["text"][:2]), ("text", stored["text"] * 0), ("features", stored["features"] + np.nan),
                       ("features", stored["features"][0]), ("text", np.array([["x"]])), ("text", stored["text"] - 999),
                       ("probe", np.array([object()])), ("text", stored["text"] + 0xd7a0), ("features", np.float32(1)),
                       ("text", stored["text"][:, :0]), ("text", stored["text"] + 0x110000)):
        np.savez(tmp_path / "wrong.npz", **{**stored, key: value})
        with pytest.raises(UserError, match="wrong.npz"):
            read_index(tmp_path / "wrong.npz")
    (tmp_path / "wrong.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(UserError, match="not an index of glyphs"):
        read_index(tmp_path / "wrong.npz")


def test_a_model_is_known_by_its_probe_at_any_batch(model):
    assert METADATA["embedding_size"] == len(probe_of(model.embed, SIZE))
    assert np.array_equal(probe_of(model.embed, SIZE), probe_of(model.embed, SIZE))
