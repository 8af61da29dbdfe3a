"""Classification of a split: what is learned and what is held out, mixed samples, what a teacher says of which samples, and
predictions out of fold."""
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import beta

from adverts.split import Row, Split, write_split
from configs import load_config, load_run
from engine.distributed import Ranks
from engine.predictions import read_predictions, write_predictions
from engine.random import normal, uniform
from inference.errors import UserError
from inference.image import fit_square
from tasks import build_task
from tasks.classification import ClassificationTask
from tasks.labels import Targets
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, average_is_published, check_same_training, losses_of, rows, stop_and_resume, train_until
from tools import predict
from train_v2 import train

CLASSES = ["blue", "green", "red"]


def draw(path, color, seed):
    """Noise, mostly of one color channel."""
    image = np.random.default_rng(seed).integers(0, 120, (40, 40, 3)).astype(np.uint8)
    image[..., CLASSES.index(color)] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """30 labeled images in three folds, 6 unlabeled ones, 6 of the test; a teacher who knows all but two."""
    root, split = tmp_path_factory.mktemp("split"), []
    for c, name in enumerate(CLASSES):
        for i in range(14):
            role = "train" if i < 10 else "unlabeled" if i < 12 else "test"
            file = f"{role}/{name}_{i:02}.png"
            draw(root / "data" / file, name, 100 * c + i)
            split.append(Row(file, "" if role == "unlabeled" else name, file, role, i % 3 if role == "train" else -1))
    write_split(root / "split.csv", Split(split))
    known = [row for row in split if row.file not in ("train/red_01.png", "unlabeled/red_10.png")]
    values = 2 * normal(1, "teacher", torch.arange(len(known))[:, None], torch.arange(3))
    write_predictions(root / "teacher", dict(zip([row.file for row in known], values)), "logits", CLASSES[::-1],
                      {row.file: row.fold for row in known})
    return root


def settings(data, output, *more):
    """Six steps on the images of two folds; without BatchNorm, since that sees each rank's own part of a batch."""
    return load_config("classification_small", [
        f"data={data / 'data'}", f"split={data / 'split.csv'}", "fold=1", f"output={output}", "network=test_convnext",
        "norm=ln", "embedding_size=16", "image_size=32", "dropout=0", "batch_size=8", "max_steps=6", "log_every=1",
        "cache=false", "num_workers=0", "device=cpu", "eval_every=0", *more])


TAUGHT = "unlabeled=test", "mixup=0.4", "teacher_weight=0.7"


def test_a_fold_is_held_out_and_nothing_but_labels_of_role_train_is_learned(data, tmp_path):
    task = build_task(settings(data, tmp_path), Ranks(0, 1, CPU))
    split = {row.file: row for row in predict.read_split(data / "split.csv").rows}
    assert {split[name].role for name in task.images.ids} == {"train"} and task.classes == CLASSES
    assert {split[name].fold for name in task.images.ids} == {0, 2} and len(task.images.ids) == 21
    assert {item.name for item in task.eval_items} == {row.file for row in split.values() if row.fold == 1}
    batch = next(task.batches(0))
    assert [CLASSES[label] for label in batch["label"]] == [split[name].label for name in batch["id"]]

    taught = build_task(settings(data, tmp_path, *TAUGHT, f"teacher={data / 'teacher'}"), Ranks(0, 1, CPU))
    assert len(taught.images.ids) == 21 + 5 + 6 and "unlabeled/red_10.png" not in taught.images.ids   # the teacher's no
    for batch in taught.batches(0):
        for name, label in zip(batch["id"], batch["label"].tolist()):
            assert label == (CLASSES.index(split[name].label) if split[name].role == "train" else -1)


def test_all_labeled_images_are_learned_without_a_fold_and_none_is_evaluated(data, tmp_path):
    task = build_task(settings(data, tmp_path, "fold=-1"), Ranks(0, 1, CPU))
    assert len(task.images.ids) == 30 and not task.evaluates and task.evaluate() is None


def test_labels_of_the_test_are_never_looked_at(data, tmp_path):
    """Another label of every test image: the same training."""
    split = predict.read_split(data / "split.csv")
    other = [row._replace(label="blue") if row.role == "test" else row for row in split.rows]
    write_split(tmp_path / "other.csv", Split(other))
    for run, file in (("one", data / "split.csv"), ("two", tmp_path / "other.csv")):
        train(settings(data, tmp_path / run, *TAUGHT, f"teacher={data / 'teacher'}", f"split={file}"), Ranks(0, 1, CPU))
    one, two = (load_file(tmp_path / run / "checkpoints/last/network.safetensors") for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def entropy(log_p, label, smoothing=0.1):
    target = [smoothing / 3 + (1 - smoothing) * (c == label) for c in range(3)]
    return -sum(share * value for share, value in zip(target, log_p))


@pytest.mark.parametrize("keys", [(), ("teacher_on=agrees",), ("teacher_on=unlabeled", "teacher_confidence=0.8"),
                                  ("teacher_labels=hard",), ("teacher_labels=accident",)], ids=str)
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_terms_are_those_of_plain_formulas(data, tmp_path, keys, mixup):
    """Sample by sample, in float64. A mixture's label is the label of both, each by its share."""
    cfg = settings(data, tmp_path, *TAUGHT, f"mixup={mixup}", f"teacher={data / 'teacher'}", "temperature=1.5", *keys)
    task = build_task(cfg, Ranks(0, 1, CPU))
    task.forward = task.model
    batch = next(task.batches(0))
    assert len(batch["id"]) == 8
    image = task.augment(batch["image"], batch["position"], batch["view"], 32)
    shares = torch.ones(8)
    if mixup:   # of positions 0 .. 7, the first with the last
        assert batch["partner"].tolist() == list(range(8))[::-1]
        drawn = uniform(cfg.seed, "mixup", batch["position"])
        shares = torch.tensor(beta.ppf(drawn.numpy(), 0.4, 0.4))
        image = torch.stack([s * a + (1 - s) * b for s, a, b in zip(shares, image, image.flip(0))]).float()
    told = read_predictions(data / "teacher")
    said = {name: values[[2, 1, 0]] for name, values in zip(told.ids, told.values.double())}
    hard = cfg.teacher_labels != "soft"
    sums = {"cross_entropy": [0, 0], "teacher": [0, 0]}
    for place, logits in enumerate(task.published(image).detach().double()):
        log_p = logits.log_softmax(0)
        for at, share in ((place, shares[place]), (7 - place, 1 - shares[place]))[:2 if mixup else 1]:
            name, label = batch["id"][at], batch["label"][at].item()
            if label >= 0:
                sums["cross_entropy"][0] += share * entropy(log_p, label)
                sums["cross_entropy"][1] += share
            teacher = said[name].softmax(0) if name in said else None
            if teacher is None or teacher.max() < cfg.teacher_confidence:
                continue
            if label >= 0 and (cfg.teacher_on == "unlabeled" or cfg.teacher_on == "agrees" and teacher.argmax() != label):
                continue
            p = (said[name] / 1.5).softmax(0)
            soft = 1.5 ** 2 * (p * (p.log() - (logits / 1.5).log_softmax(0))).sum()
            sums["teacher"][0] += share * (entropy(log_p, teacher.argmax()) if hard else soft)
            sums["teacher"][1] += share
    terms = task.losses(batch)
    for name, weight in (("cross_entropy", 1), ("teacher", 0.7)):
        total, count = (float(value) for value in sums[name])
        assert terms[name].item() == pytest.approx(weight * total / max(1, count), rel=1e-5), name
    labeled = {name for name in task.images.ids if name.startswith("train")}
    assert bool(labeled) == (cfg.teacher_labels != "accident")


CASES = {"mixed": (*TAUGHT, "accumulate=2"), "accident": (*TAUGHT, "mixup=0", "teacher_labels=accident")}


def in_double(rank, world, data, output):
    torch.set_default_dtype(torch.float64)
    try:
        for name, keys in CASES.items():
            train(settings(data, output / f"{name}-{world}", f"teacher={data / 'teacher'}", "batch_size=9", "max_steps=3",
                           *keys), Ranks(rank, world, CPU))
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_two_and_three_ranks_run_the_same_training(data, tmp_path):
    """Parts of 1 to 9 images, whose partners are mostly another rank's or in another micro-batch."""
    in_double(0, 1, data, tmp_path)
    for world in (2, 3):
        run_ranks(world, in_double, data, tmp_path)
    for name in CASES:
        one, *others = (tmp_path / f"{name}-{world}" for world in (1, 2, 3))
        assert len(losses_of(one)) == 3 and min(rows(one, "loss/teacher")) > 0
        check_same_training(one, others, ("loss", "loss/cross_entropy", "loss/teacher"), atol=1e-12)


def test_a_resumed_run_is_the_run_itself(data, tmp_path):
    more = [*TAUGHT, f"teacher={data / 'teacher'}", "dropout=0.3", "save_every=2", "swa=0.5"]
    whole, _ = stop_and_resume(5, lambda output, *keys: settings(data, output, *more, *keys), tmp_path,
                               ClassificationTask, ("network", "average"))
    assert average_is_published(whole)


@pytest.mark.parametrize("keys, says", [
    (("split=", "fold=0"), "fold=0: needs split"),
    (("split=", "fold=-1", "unlabeled=test"), "unlabeled=test: needs split"),
    (("unlabeled=test",), "without a teacher"),
    (("fold=3",), "has the folds 0 to 2"),
    (("teacher_labels=accident",), "drops the labeled samples"),
    (("eval_data=DIR",), "eval_data=.*on one of its folds alone"),
    (("eval_data=DIR", "fold=-1"), "eval_data=.*on one of its folds alone"),     # all of it is learned from
    (("sampler=per_class",), "sampler=per_class: takes folders as classes"),
    (("freeze=1",), "freeze=1.*need head=timm, and here it is gap"),
    (("data=DIR:1:labelled",), "without :labelled"),
    (("split=DIR/nothing.csv",), "nothing.csv"),
    (("unlabeled=unlabeled", "teacher=DIR/../teacher", "teacher_confidence=1"), "speaks of none"),
])
def test_keys_that_do_not_fit_together_are_one_line(data, tmp_path, keys, says):
    keys = [key.replace("DIR", str(data / "data")) for key in keys]
    with pytest.raises(UserError, match=says) as error:
        build_task(settings(data, tmp_path, *keys), Ranks(0, 1, CPU))
    assert "\n" not in str(error.value)


def test_an_image_of_the_split_that_is_missing_is_named(data, tmp_path):
    split = predict.read_split(data / "split.csv")
    write_split(tmp_path / "more.csv", Split([*split.rows, Row("train/gone.png", "red", "gone", "train", 0)]))
    with pytest.raises(UserError, match="train/gone.png is not below data="):
        build_task(settings(data, tmp_path / "run", f"split={tmp_path / 'more.csv'}"), Ranks(0, 1, CPU))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run for each fold."""
    output = tmp_path_factory.mktemp("runs")
    for fold in range(3):
        train(settings(data, output / str(fold), f"fold={fold}", "lr=1e-2", "augment=none"), Ranks(0, 1, CPU))
    return output


def test_predictions_are_out_of_fold(data, trained, tmp_path, monkeypatch):
    """Each labeled image by the run that had not seen it, the others by the mean of all, in any order of the runs."""
    out = tmp_path / "P.safetensors"
    runs = [str(trained / str(fold)) for fold in (2, 0, 1)]
    assert predict.main(["--data", str(data / "data"), "--split", str(data / "split.csv"), "--out", str(out), *runs]) == 0
    found, split = read_predictions(out), predict.read_split(data / "split.csv")
    assert found.classes == CLASSES and sorted(found.ids) == sorted(row.file for row in split.rows)
    assert dict(zip(found.ids, found.folds.tolist())) == {row.file: row.fold for row in split.rows}
    assert found.about["split"] == split.digest()
    networks = [load_run(trained / str(fold)) for fold in range(3)]
    for row in split.rows[::5]:
        pixels = fit_square(cv2.imread(str(data / "data" / row.file)), 32, "pad")[..., ::-1].copy()
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        logits = torch.stack([network(image)[0].detach() for network, _ in networks])
        expected = logits[row.fold] if row.role == "train" else logits.mean(0)
        assert torch.allclose(found.join([row.file])[0][0], expected, atol=1e-4), row.file


def test_runs_that_would_speak_of_what_they_learned_are_refused(data, trained, tmp_path):
    def says(*runs, split=data / "split.csv"):
        with pytest.raises(UserError) as error:
            predict.main(["--data", str(data / "data"), "--split", str(split), "--out", str(tmp_path / "P"),
                          *(str(trained / run) for run in runs)])
        return str(error.value)
    assert "held out the folds [0, 1]" in says("0", "1") and "[0, 1, 1]" in says("0", "1", "1")
    rows_ = [row._replace(fold=(row.fold + 1) % 3) if row.fold >= 0 else row
             for row in predict.read_split(data / "split.csv").rows]
    write_split(tmp_path / "other.csv", Split(rows_))
    assert "another split" in says("0", "1", "2", split=tmp_path / "other.csv")
    info = json.loads((trained / "0/run.json").read_text())
    assert info["fold"] == 0 and info["split"] == predict.read_split(data / "split.csv").digest()
    copied = [tmp_path / str(fold) for fold in range(3)]
    for fold, folder in enumerate(copied):
        shutil.copytree(trained / str(fold), folder, ignore=shutil.ignore_patterns("checkpoints"))
    (copied[0] / "run.json").write_text(json.dumps({**info, "classes": ["blue", "green", "violet"]}))
    assert "run.json: names other classes" in says(*copied)


def test_a_run_that_has_not_come_to_its_end_is_a_warning(data, trained, tmp_path, capsys):
    cfg = settings(data, tmp_path / "0", "fold=0", "save_every=2")
    train_until(5, cfg, pytest.MonkeyPatch(), ClassificationTask)
    words = ["--data", str(data / "data"), "--split", str(data / "split.csv"), "--out", str(tmp_path / "P")]
    for first, said in ((tmp_path, [f"warning: {tmp_path}/0: its training has only come to step 4 of 6"]), (trained, [])):
        predict.main([*words, str(first / "0"), str(trained / "1"), str(trained / "2")])
        told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert [line.partition(", and its")[0] for line in told] == said
    shutil.rmtree(tmp_path / "0/checkpoints")  # which then does not tell
    predict.main([*words, str(tmp_path / "0"), str(trained / "1"), str(trained / "2")])
    assert "warning" not in capsys.readouterr().err


def test_the_last_network_of_a_fold_is_published_and_not_the_best(data, tmp_path, monkeypatch):
    """Chosen by the fold held out, its predictions of that fold would be too good. Here each evaluation is worse."""
    evaluate, found = ClassificationTask.evaluate, []

    def worse(self):
        found.append(evaluate(self))
        return replace(found[-1], summary={**found[-1].summary, "accuracy": 1 / len(found)})
    monkeypatch.setattr(ClassificationTask, "evaluate", worse)
    train(settings(data, tmp_path, "max_steps=3", "eval_every=1"), Ranks(0, 1, CPU))
    published = torch.load(tmp_path / "model.pt", weights_only=True)
    last, first = (load_file(tmp_path / f"checkpoints/step-{step}/network.safetensors") for step in (3, 2))
    assert all(torch.equal(value, last["network." + name]) for name, value in published.items())
    assert not all(torch.equal(value, first["network." + name]) for name, value in published.items())
    assert len(found) == 3 and json.loads((tmp_path / "eval.json").read_text()) == found[-1].document


def test_the_optimizer_s_state_is_resumed_whatever_the_rates(data, tmp_path):
    """It is found again by the order of the parameters; what changes that is refused."""
    task = build_task(settings(data, tmp_path), Ranks(0, 1, CPU))
    same = task.param_groups()
    task.cfg.classifier_lr = 10.0
    own = task.param_groups()
    assert [id(p) for group in same for p in group["params"]] == [id(p) for group in own for p in group["params"]]
    rate = {id(p): group["lr"] / task.cfg.lr for group in own for p in group["params"]}
    last = {id(p) for p in task.published.classify.parameters()}
    assert rate == {name: 10 if name in last else 1 for name in rate} and last < rate.keys()
    whole = ["head=timm", "network=test_efficientnet", "max_steps=1"]
    train(settings(data, tmp_path, *whole, "freeze=1"), Ranks(0, 1, CPU))
    with pytest.raises(UserError, match="its freeze is 1"):
        train(settings(data, tmp_path, *whole, "resume=auto"), Ranks(0, 1, CPU))


def test_a_teacher_may_know_the_fold_that_is_held_out(data, tmp_path):
    """Whether it does only its maker knows: the log tells what that would mean."""
    for fold, said in ((1, True), (-1, False)):
        task = build_task(settings(data, tmp_path, f"teacher={data / 'teacher'}", f"fold={fold}"), Ranks(0, 1, CPU))
        assert ("the evaluation is too good if the teacher knows labels of fold 1" in task.notes) == said


def test_a_mixture_below_a_whole_sample_does_not_divide_by_nothing():
    """A part of a batch in which no sample is labeled: the term is 0, and its gradient too."""
    cfg = load_config("classification_small", ["data=x"])
    targets = Targets(cfg, CLASSES)
    logits = torch.zeros(2, 3, requires_grad=True)
    term, = targets.terms((logits,), [(["a", "b"], torch.tensor([-1, -1]), None)]).values()
    term.backward()
    assert term.item() == 0 and not logits.grad.any()
