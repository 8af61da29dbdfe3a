"""Registration with teachers: what each kind sees, the terms and their gradient shares by plain formulas, the same training
on 1, 2 and 3 ranks, bit-equal resume, nothing of it published, and what does not fit named in one line."""
import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from configs import load_config, load_run
from dataset import view_of
from engine.distributed import Ranks
from engine.predictions import read_predictions, write_predictions
from engine.schedules import ema_decay
from inference.errors import UserError
from losses import clip_kl, cosine_distance, relational_kl, rkd_distance
from partial_fc import margin_softmax_reference
from tasks import build_task
from tasks.teachers import follow, row_of
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, centers, check_same_training, losses_of, make_images, rows, settings, stop_and_resume
from tools import cache_teacher
from train_v2 import train

ONE = Ranks(0, 1, CPU)
CLIP = {"embed_dim": 512, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1}}


def export(run):
    """Write `run`/model.onnx."""
    import onnx_export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["onnx_export.py", str(run)])
        onnx_export.main()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """data/, seven images in eight views; teachers: run/ with model.onnx (24 numbers), same/ (16), rows of all samples and
    of some, tiny random CLIP and timm weights."""
    import open_clip  # here, and not in the processes of the ranks, whom the import would take seconds each
    root = tmp_path_factory.mktemp("teachers")
    make_images(root / "data")
    for name, width in (("run", 24), ("same", 16)):
        train(settings(root / "data", root / name, f"embedding_size={width}", "max_steps=2"), ONE)
    export(root / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cache_teacher", "lcnet_strong", str(root / "whole"), f"data={root / 'data'}",
                                   "expansion=8", "image_size=32", "device=cpu", f"teacher={root / 'run'}"])
        cache_teacher.main()
    told = read_predictions(root / "whole")
    some = {name: value for name, value in zip(told.ids, told.values) if name.split("#")[0] not in ("0.png", "3.png")}
    write_predictions(root / "some", {**some, "elsewhere.png": torch.ones(24)}, "embedding")
    torch.manual_seed(0)
    (root / "configs").mkdir()
    (root / "configs/tiny-test-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(root / "configs")
    torch.save(open_clip.create_model("tiny-test-clip").state_dict(), root / "clip.pt")
    torch.save(timm.create_model("test_efficientnet").state_dict(), root / "timm.pt")
    return root


def kinds(made):
    """{kind: what `teacher` is}."""
    return {"run": made / "run", "onnx": made / "run/model.onnx", "cached": made / "whole",
            "open_clip": f"open_clip:tiny-test-clip:{made / 'clip.pt'}", "ema": "ema",
            "timm": f"timm:test_efficientnet:{made / 'timm.pt'}"}


def taught(made, output, *more):
    """The config of a run with a teacher (run/, unless `more` says another)."""
    return settings(made / "data", output, f"teacher={made / 'run'}", *more)


def ready(cfg, step=0):
    """A task at the beginning of a step, and its batch."""
    task = build_task(cfg, ONE)
    task.forward = task.model
    shown = task.begin_step(step, 1.0)
    return task, next(task.batches(0)), shown


def test_every_kind_of_teacher_sees_a_sample_as_it_is_in_its_own_view(made, tmp_path):
    """The same as if the image were turned first; and a run, its export and its cached rows say the same."""
    said = {}
    for kind, teacher in kinds(made).items():
        task, batch, _ = ready(taught(made, tmp_path, f"teacher={teacher}", "augment=strong"))
        one, = task.lesson.teachers
        said[kind], known = one(batch)
        assert said[kind].shape == (13, one.width) and known.all() and len(set(batch["view"].tolist())) > 4
        if kind != "cached":
            turned = np.stack([view_of(image.permute(1, 2, 0).numpy(), view)
                               for image, view in zip(batch["image"], batch["view"].tolist())])
            again, _ = one({**batch, "image": torch.from_numpy(turned).permute(0, 3, 1, 2).contiguous(),
                            "view": torch.zeros(13, dtype=torch.int64)})
            # 8-bit pixels of the ONNX file may be rounded the other way
            assert torch.allclose(F.normalize(again), F.normalize(said[kind]), atol=2e-3 if kind == "onnx" else 1e-4), kind
    assert {kind: vectors.shape[1] for kind, vectors in said.items()} == {
        "run": 24, "onnx": 24, "cached": 24, "open_clip": 512, "timm": 256, "ema": 16}
    run, exported, cached = (F.normalize(said[kind]) for kind in ("run", "onnx", "cached"))
    assert torch.allclose(cached, run, atol=1e-5) and torch.allclose(exported, run, atol=5e-3)  # of 8-bit pixels


def pairs_of(batch, known):
    """bool [B,B], by a loop: samples of different images that the teacher knows."""
    return torch.tensor([[bool(known[i] and known[j]) and batch["id"][i] != batch["id"][j] for j in range(len(known))]
                         for i in range(len(known))])


@pytest.mark.parametrize("term", ["match", "relational", "rkd", "clip_kl"])
def test_terms_and_shares_are_those_of_plain_formulas(made, tmp_path, term):
    """Value, and the gradient at the embedding beside that of the margin softmax: of the samples that the teacher knows, and
    for pairs of those that show different images."""
    task, batch, shown = ready(taught(made, tmp_path, f"teacher={made / 'some'}", f"teacher_term={term}", "teacher_weight=3",
                                      "teacher_temperature=0.2", "student_temperature=0.3"))
    terms = task.losses(batch)
    sum(terms.values()).backward()
    task.finish_step(torch.tensor(False))

    image = task.augment(batch["image"], batch["position"], batch["view"], 32)
    e = task.published(image).detach().requires_grad_()                       # as for the losses: no BatchNorm, no dropout
    teacher = read_predictions(made / "some")
    told = dict(zip(teacher.ids, teacher.values))
    names = [row_of(name, view) for name, view in zip(batch["id"], batch["view"].tolist())]
    known = torch.tensor([name in told for name in names])
    said = torch.stack([told.get(name, torch.ones(24)) for name in names])
    assert 0 < known.sum() < 13 and len(set(batch["id"])) < 13
    if term in ("match", "clip_kl"):
        distance = {"match": cosine_distance, "clip_kl": clip_kl}[term]
        projected = e @ task.model.projectors[0].weight.detach().T
        expected = 3 * distance(projected[known], said[known]).mean()
    else:
        pairs = pairs_of(batch, known)
        if term == "rkd":
            values, counts = rkd_distance(e, said, pairs)
        else:
            values, counts = relational_kl(e, said, pairs, 0.3, 0.2)
        expected = 3 * values.sum() / counts.sum()
    assert terms[term].item() == pytest.approx(expected.item(), rel=1e-5)
    own, = torch.autograd.grad(expected, e)
    task = build_task(task.cfg, ONE)                                          # the class centers have moved in backward
    task.begin_step(0, 1.0)
    loss = margin_softmax_reference(e, task.partial_fc.weight.detach(), batch["label"], task.partial_fc.margin)
    of_margin, = torch.autograd.grad(loss, e)
    assert shown[f"share/{term}"] == pytest.approx((own.norm() / of_margin.norm()).item(), rel=1e-4)


def test_several_teachers(made, tmp_path):
    """Joined, their cosines are the means of theirs; each by itself, they share the weight."""
    both = f"teacher={made / 'same'},{made / 'some'}"
    task, batch, _ = ready(taught(made, tmp_path, both))
    (said, known), = task.lesson._said(batch, torch.float32)
    vectors = [F.normalize(teacher(batch)[0]) for teacher in task.lesson.teachers]
    mean = sum(v @ v.T for v in vectors) / 2
    rows_known = task.lesson.teachers[1](batch)[1]
    assert torch.equal(known, rows_known) and said.shape == (13, 40) and 0 < known.sum() < 13
    assert torch.allclose((said @ said.T)[known][:, known], mean[known][:, known], atol=1e-6)

    task, batch, _ = ready(taught(made, tmp_path, both, "teacher_ensemble=each"))
    terms = task.losses(batch)
    assert list(terms) == ["cosface", "match-1", "match-2"]
    assert [layer.weight.shape for layer in task.model.projectors] == [(16, 16), (24, 16)]
    e, first, second = task.model(task.augment(batch["image"], batch["position"], batch["view"], 32))
    assert terms["match-1"].item() == pytest.approx(2.5 * cosine_distance(first, vectors[0]).mean().item(), rel=1e-5)
    assert terms["match-2"].item() == pytest.approx(2.5 * cosine_distance(second, vectors[1])[known].mean().item(), rel=1e-5)


def test_without_a_projector_the_embedding_itself_meets_the_teacher(made, tmp_path):
    task, batch, _ = ready(taught(made, tmp_path, f"teacher={made / 'same'}", "projector=false"))
    terms = task.losses(batch)
    e, = task.model(task.augment(batch["image"], batch["position"], batch["view"], 32))
    assert terms["match"].item() == pytest.approx(5 * cosine_distance(e, task.lesson.teachers[0](batch)[0]).mean().item())


def test_the_references_clip_term_teaches_nothing_and_matching_does(made, tmp_path):
    """Its recipe (s=64, m=.4, LN, a projection onto CLIP's 512 numbers, weight 1): a term of .002 beside a loss of dozens.
    The same teacher by configs/distill: above .05 of the margin softmax's gradient from the first step to the last."""
    clip = f"teacher=open_clip:tiny-test-clip:{made / 'clip.pt'}"
    theirs = ["s=64", "m=0.4", "teacher_term=clip_kl", "teacher_weight=1"]
    ours = load_config("distill")
    ours = [f"{key}={ours[key]}" for key in ("s", "m", "margin_warmup", "teacher_term", "teacher_weight")]
    for name, more in (("theirs", theirs), ("ours", ours)):
        train(settings(made / "data", tmp_path / name, clip, *more), ONE)
    assert rows(tmp_path / "theirs", "loss/clip_kl") == pytest.approx([0.00195] * 8, rel=0.15)
    assert min(rows(tmp_path / "theirs", "loss/cosface")) > 20 and max(rows(tmp_path / "theirs", "share/clip_kl")) < 1e-3
    shares = rows(tmp_path / "ours", "share/match")
    assert len(shares) == 8 and min(shares) > 0.05
    assert "share/match 0." in (tmp_path / "ours/training.log").read_text()


def test_a_teacher_is_no_part_of_what_is_published(made, tmp_path):
    train(taught(made, tmp_path / "taught", f"teacher={made / 'run'},ema", "ema=0.9"), ONE)
    train(settings(made / "data", tmp_path / "plain"), ONE)
    published, plain = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("taught", "plain"))
    assert {name: value.shape for name, value in published.items()} == {name: value.shape for name, value in plain.items()}
    whole = load_file(tmp_path / "taught/checkpoints/last/network.safetensors")
    more = {name for name in whole if not name.startswith("network.")}
    assert more == {"projectors.0.weight", *(f"average.{name}" for name in plain)}
    export(tmp_path / "taught")
    assert load_run(tmp_path / "taught")[0].width == 16
    log = (tmp_path / "taught/training.log").read_text()
    assert "teacher ema: 16 numbers" in log and f"teacher {made / 'run'}: 24 numbers of images of 32 x 32 pixels" in log


def test_without_a_teacher_nothing_is_different(made, tmp_path):
    task, batch, shown = ready(settings(made / "data", tmp_path))
    assert task.model is task.published and list(task.losses(batch)) == ["cosface"]
    assert set(shown) == {"margin", "centres_lr"}
    assert task.compatibility_keys()["teacher"] is None                       # what a checkpoint without the key says, too


CASES = {"match": ["teacher={made}/run", "projector_lr=1e-2"],
         "relational": ["teacher={made}/some", "teacher_term=relational", "accumulate=2"],
         "rkd": ["teacher=ema,{made}/some", "teacher_term=rkd", "teacher_ensemble=each", "teacher_ema=0.9"],
         "clip_kl": ["teacher={made}/same,{made}/some", "teacher_term=clip_kl", "teacher_weight=100"]}


def case(made, output, name, *more):
    return taught(made, output, "teacher_fade=0.5", *(word.format(made=made) for word in CASES[name]), *more)


def in_double(rank, world, made, output):
    torch.set_default_dtype(torch.float64)
    for name in CASES:
        train(case(made, output / f"{name}-{world}", name, "max_steps=4"), Ranks(rank, world, CPU))


def test_one_two_and_three_ranks_run_the_same_training(made, tmp_path):
    """Thirteen samples in a step, in uneven parts, of which the teacher of some rows knows five images in seven."""
    for world in (1, 2, 3):
        run_ranks(world, in_double, made, tmp_path)
    for name in CASES:
        one, *others = (tmp_path / f"{name}-{world}" for world in (1, 2, 3))
        with open(one / "results.csv") as file:
            columns = [column for column in file.readline().strip().split(",") if column.startswith(("loss", "share"))]
        shares = [column for column in columns if column.startswith("share/")]
        assert len(shares) == (2 if name == "rkd" else 1) and len(columns) == 2 * len(shares) + 2
        assert all(min(rows(one, column)) > 0 and len(rows(one, column)) == 4 for column in shares)
        check_same_training(one, others, columns)
        for other in others:
            assert torch.allclose(centers(other), centers(one), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["match", "rkd"])
def test_a_resumed_run_is_the_run_itself(made, tmp_path, name):
    """With the projector, and the average of the network that is its teacher."""
    whole, _ = stop_and_resume(3, lambda output, *keys: case(made, output, name, "save_every=2", *keys), tmp_path)
    assert len(losses_of(whole)) == 8


def test_a_checkpoint_of_another_teacher_or_term_is_refused(made, tmp_path):
    train(taught(made, tmp_path, "max_steps=2"), ONE)
    for change, says in ((f"teacher={made / 'same'}", "its teacher is"), ("teacher=", "its teacher is"),
                         ("teacher_term=clip_kl", "its teacher_term is 'match'")):
        with pytest.raises(UserError, match=says):
            train(taught(made, tmp_path, "resume=auto", change), ONE)
    train(taught(made, tmp_path, "resume=auto", f"teacher={made / 'run'}/", "max_steps=3", "teacher_weight=1"), ONE)


def test_the_weight_fades_over_the_last_part_of_the_run(made, tmp_path):
    task = build_task(taught(made, tmp_path, "teacher_fade=0.5", "teacher_weight=4"), ONE)
    shown = [task.begin_step(step, 1.0)["teacher_weight"] for step in range(8)]
    assert shown == pytest.approx([4, 4, 4, 4, 4, 3, 2, 1])


def test_an_average_follows_its_network_unless_the_step_is_skipped():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    average = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).requires_grad_(False)
    network(torch.randn(5, 2))                                                # statistics of its own
    before = {name: value.clone() for name, value in average.state_dict().items()}
    follow(average, network, 0.75, torch.tensor(True))
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())
    follow(average, network, 0.75, torch.tensor(False))
    for name, value in network.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * value if value.is_floating_point() else before[name]
        assert torch.allclose(average.state_dict()[name], expected), name


def test_the_average_of_a_run_is_that_of_its_steps(made, tmp_path):
    """By checkpoints of every step."""
    train(taught(made, tmp_path, "teacher=ema", "teacher_ema=0.9", "max_steps=4", "save_every=1", "keep_checkpoints=9"), ONE)
    states = [load_file(tmp_path / f"checkpoints/step-{step}/network.safetensors") for step in range(1, 5)]
    average = {name: value for name, value in states[0].items() if name.startswith("average.")}
    for step, state in enumerate(states):
        decay = ema_decay(step, 0.9)
        if step:
            average = {name: decay * value + (1 - decay) * state[name.replace("average", "network", 1)]
                       for name, value in average.items()}
        assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in average.items())
    assert any(not torch.equal(value, states[3][name.replace("average", "network", 1)]) for name, value in average.items())


def test_open_clip_reads_the_file_alone_and_scales_colors_as_its_network_was_trained(made, tmp_path, monkeypatch):
    """Even where the file has the name of weights that open_clip would download; those say which mean and std it takes."""
    import open_clip
    theirs = {"url": "http://127.0.0.1:9/weights.pt", "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test-clip", {"laion": theirs})
    (tmp_path / "laion").write_bytes((made / "clip.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    task, batch, _ = ready(taught(made, tmp_path / "run", "teacher=open_clip:tiny-test-clip:laion"))
    teacher, = task.lesson.teachers
    model = open_clip.create_model("tiny-test-clip", pretrained=str(made / "clip.pt")).eval()
    image = teacher._view(batch["image"], batch["position"], batch["view"], 32)
    scaled = (image - torch.tensor(theirs["mean"])[:, None, None]) / 0.5
    assert torch.allclose(teacher(batch)[0], model.encode_image(scaled), atol=1e-5)


def test_what_does_not_fit_is_named(made, tmp_path):
    (tmp_path / "text").write_text("a teacher")
    (tmp_path / "folder").mkdir()
    torch.save({"weights": torch.ones(1)}, tmp_path / "weights.pt")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    write_predictions(tmp_path / "other", {"elsewhere/1.png": torch.ones(3)}, "embedding")
    write_predictions(tmp_path / "padded", {"0.png": torch.ones(3)}, "embedding", about={"fit": "pad"})
    write_predictions(tmp_path / "logits", {"0.png": torch.ones(2)}, "logits", ["a", "b"])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"network": 3}')
    torch.save({}, broken / "model.pt")
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    (classifier / "config.json").write_text('{"task": "classification"}')
    torch.save({}, classifier / "model.pt")
    clip = "open_clip:tiny-test-clip"
    for change, says in (
            (f"teacher={tmp_path / 'nowhere'}", "no such file or folder.*open_clip:NAME:FILE"),
            (f"teacher={tmp_path / 'text'}", "cannot be used as predictions"),
            (f"teacher={tmp_path / 'folder'}", "not the output folder of a finished run"),
            (f"teacher={broken}", "its network cannot be made .*network=3"),
            (f"teacher={classifier}", "task=classification: it has no embeddings"),
            (f"teacher={tmp_path / 'model.onnx'}", "cannot load it"),
            (f"teacher={tmp_path / 'other'}", "knows none of the images.*'elsewhere/1.png'.*identity=content"),
            (f"teacher={tmp_path / 'logits'}", "holds logits"),
            (f"teacher={made / 'run'},{made / 'run'}", "names one twice"),
            ("teacher=,", "names none; give"),
            (f"teacher={tmp_path / 'padded'}", "takes images of fit=pad, this run"),
            ("projector=false", "have 24 numbers.*embedding_size=16; use embedding_size=24"),
            ("fit=pad", "takes images of fit=squash"),
            (f"teacher={clip}:{tmp_path / 'none.pt'}", "none.pt: no such file; download"),
            (f"teacher={clip}:{tmp_path / 'weights.pt'}", "not weights of tiny-test-clip"),
            ("teacher=open_clip:tiny-test-clip", "write open_clip:NAME:FILE"),
            (f"teacher=open_clip:no-clip:{made / 'clip.pt'}", "open_clip has no no-clip"),
            (f"teacher=open_clip:roberta-ViT-B-32:{made / 'clip.pt'}", "would be downloaded"),
            (f"teacher=timm:test_efficientnet:{tmp_path / 'weights.pt'}", "not weights of test_efficientnet"),
            ("teacher=timm:no_network:x.pt", "x.pt: no such file"),
            ("teacher=timm:test_efficientnet", "write timm:NAME:FILE"),
            (f"teacher=timm:no_network:{made / 'timm.pt'}", "^teacher=timm:no_network:.*timm cannot make it"),
            (f"teacher=timm:resnet50.no_tag:{made / 'timm.pt'}", "no_tag"),
            ("teacher_term=clip", "did you mean clip_kl")):
        with pytest.raises(UserError, match=says) as error:
            build_task(taught(made, tmp_path / "run", change), ONE)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="loss=margin alone"):
        load_config("glyphs_supcon", [f"teacher={made / 'run'}"])


@pytest.mark.parametrize("words, says", [
    (["lcnet_strong"], "usage"), (["lcnet_strong", "data=a"], "usage"),
    (["lcnet_strong", "file", "data=a"], "give one network"),
    (["lcnet_strong", "file", "data=a", "teacher=ema"], "give one network"),
    (["ads_text_small", "file", "texts=a", "split=b", "teacher=c"], "task=text_classification takes no images")])
def test_the_cache_command_says_what_is_missing(words, says, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cache_teacher", *words])
    with pytest.raises(UserError, match=says):
        cache_teacher.main()


def test_a_cached_teacher_holds_every_view_once(made):
    told = read_predictions(made / "whole")
    assert sorted(told.ids) == sorted(row_of(f"{i}.png", view) for i in range(7) for view in range(8))
    assert told.about["teacher"] == "run" and told.about["fit"] == "squash"
    assert told.kind == "embedding" and told.values.shape == (56, 24)
