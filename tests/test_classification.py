"""Classification with a cached teacher, one file of tasks/ and one config on the common engine: it learns, trains alike on
1, 2 and 3 ranks, resumes to the bit, joins the teacher by id, and exports without what is only for training."""
import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import onnx_export
from configs import load_config, load_run, read_info
from dataset import Batches
from engine.distributed import Ranks, global_mean
from engine.predictions import read_predictions, write_predictions
from engine.random import normal, uniform
from inference.errors import UserError
from tasks import build_task
from tasks.classification import ClassificationTask
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, check_same_training, losses_of, rows, train_until
from train_v2 import train

CLASSES = ["blue disc", "blue frame", "red disc", "red frame"]
COLUMNS = "loss", "loss/cross_entropy", "loss/teacher"


def drawing(name, seed, side=48):
    """A disc or a frame in some blue or red, somewhere on noise of some gray: uint8 BGR `[side,side,3]`."""
    generator = np.random.default_rng([CLASSES.index(name), seed])
    noise = generator.integers(0, 256, (side, side, 3)).astype(np.uint8)
    image = cv2.addWeighted(noise, 0.3, np.full_like(noise, generator.integers(60, 196)), 0.7, 0)
    color = generator.integers(0, 80, 3).tolist()
    color[2 if "red" in name else 0] = int(generator.integers(170, 256))
    radius = int(generator.integers(9, 15))
    x, y = generator.integers(radius + 1, side - radius - 1, 2).tolist()
    if "disc" in name:
        cv2.circle(image, (x, y), radius, color, -1)
    else:
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), color, 4)
    return image


def draw(folder, count, first=0):
    """`count` images of each class in `folder`, which is returned."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / name / f"{i:03}.png"), drawing(name, first + i))
    return folder


def settings(data, output, *more):
    """A run of six steps; without BatchNorm, since that sees each rank's own part of a batch."""
    return load_config("classification_small", [
        f"data={data}:1:labelled", f"output={output}", "network=test_convnext", "norm=ln", "embedding_size=16",
        "image_size=32", "dropout=0", "batch_size=13", "max_steps=6", "log_every=1", "cache=false", "num_workers=0",
        "device=cpu", *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty images, and two teachers that know some of them, and images that are not there: data/, embeddings, logits."""
    root = tmp_path_factory.mktemp("classes")
    draw(root / "data", 5)
    names = [f"{name}/{i:03}.png" for name in CLASSES for i in (0, 2, 3, 7)]
    values = normal(1, "teacher", torch.arange(len(names))[:, None], torch.arange(6))
    write_predictions(root / "embeddings", dict(zip(names, values)), "embedding")
    write_predictions(root / "logits", dict(zip(names, values[:, :5])), "logits", ["other", *CLASSES[::-1]])
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a teacher that embeds each class elsewhere, of which every third image is unknown: train/, test/, run/."""
    root = tmp_path_factory.mktemp("trained")
    draw(root / "train", 50)
    draw(root / "test", 25, first=1000)
    write_predictions(root / "teacher", {
        f"{name}/{i:03}.png": F.one_hot(torch.tensor(c), 8) + 0.1 * normal(0, name, i, torch.arange(8))
        for c, name in enumerate(CLASSES) for i in range(50) if i % 3}, "embedding")
    train(settings(root / "train", root / "run", "network=test_efficientnet", "norm=lbn", "embedding_size=64", "dropout=0.1",
                   "batch_size=32", "max_steps=100", "augment=none", "log_every=20", f"eval_data={root / 'test'}",
                   f"teacher={root / 'teacher'}", "projector_lr=4e-3"), Ranks(0, 1, CPU))
    return root


def test_it_learns(trained):
    """Held-out accuracy: chance is 1/4, the color alone gives 1/2; six seeds gave 0.85 to 0.94."""
    found = json.loads((trained / "run/eval.json").read_text())
    assert found["images"] == 100 and found["accuracy"] > 0.75 and found["cross_entropy"] < 0.7
    terms = [rows(trained / "run", column) for column in COLUMNS[1:]]
    assert all(term[-1] < 0.6 * term[0] for term in terms)
    assert np.allclose(rows(trained / "run", "loss"), np.sum(terms, 0))
    log = (trained / "run/training.log").read_text()
    assert "teacher: embedding [8], known for 132 of 200 samples" in log and "eval 100/100 accuracy" in log


def test_the_projector_keeps_its_stated_rate(trained):
    """Stated for a batch of 512 the network's rate follows the square root, "fixed" is the rate itself."""
    network, projector = (np.array(rows(trained / "run", column)) for column in ("lr", "lr/projector"))
    assert np.allclose(projector / network, 4e-3 / (1e-2 * (32 / 512) ** 0.5))


def test_the_projector_is_not_published_and_the_export_names_the_classes(trained, monkeypatch):
    saved = torch.load(trained / "run/model.pt", weights_only=True)
    whole = load_file(trained / "run/checkpoints/last/network.safetensors")
    assert {name for name in whole if not name.startswith("network.")} == {"projector.weight", "projector.bias"}
    assert saved.keys() == {name.removeprefix("network.") for name in whole if name.startswith("network.")}

    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(trained / "run")])
    onnx_export.main()
    proto = onnx.load(trained / "run/model.onnx")
    shapes = [tuple(weight.dims) for weight in proto.graph.initializer]
    assert (4, 64) in shapes and not {(8, 64), (64, 8)} & set(shapes)        # the classes' layer, but not the projector's
    session = onnxruntime.InferenceSession(trained / "run/model.onnx", providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["docmetric"])
    assert metadata["classes"] == CLASSES and (metadata["task"], metadata["fit"]) == ("classification", "pad")
    assert metadata["config"]["teacher"] == "teacher"                        # its name, not where it lies
    image = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    probabilities, = session.run(["probabilities"], {"img": image})
    network, _ = load_run(trained / "run")
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).softmax(1).numpy()
    assert np.abs(probabilities - expected).max() < 1e-5 and np.allclose(probabilities.sum(1), 1)


def test_its_predictions_teach_another(trained, tmp_path):
    network, cfg = load_run(trained / "run")
    task = build_task(cfg, Ranks(0, 1, CPU))
    task.published.load_state_dict(network.state_dict())
    said = task.predict(task.batches(92))                                    # the last 8 of 100 steps: 256 of 200 images
    assert task.published.training and set(said) <= set(task.images.ids) and len(said) > 150
    again = task.predict(task.batches(96))                                   # other batches, no dropout: the same numbers
    assert all(torch.allclose(said[name], again[name], rtol=1e-4, atol=1e-4) for name in said.keys() & again)
    right = [CLASSES[logits.argmax()] == name.split("/")[0] for name, logits in said.items()]
    assert np.mean(right) > 0.9
    write_predictions(tmp_path / "teacher", said, "logits", task.classes)
    more = [f"teacher={tmp_path / 'teacher'}", "label_weight=0", "teacher_weight=0.5", "augment=none", "max_steps=30",
            "lr=3e-2", "network=test_efficientnet"]
    train(settings(trained / "train", tmp_path / "run", *more), Ranks(0, 1, CPU))
    assert set(rows(tmp_path / "run", "loss/cross_entropy")) == {0}
    distance = rows(tmp_path / "run", "loss/teacher")
    assert np.mean(distance[-5:]) < 0.7 * np.mean(distance[:5])


@pytest.mark.parametrize("teacher", ["embeddings", "logits"])
def test_the_terms_are_those_of_plain_formulas(data, tmp_path, teacher):
    """Sample by sample: smoothed cross entropy of all of them, the teacher's term of those that it knows alone."""
    cfg = settings(data / "data", tmp_path, f"teacher={data / teacher}", "label_weight=0.7", "teacher_weight=3",
                   "label_smoothing=0.2", "temperature=1.5")
    task = build_task(cfg, Ranks(0, 1, CPU))
    task.forward = task.model
    batch = next(task.batches(0))
    image = task.augment(batch["image"], batch["position"], batch["view"], 32)
    told = read_predictions(data / teacher)
    said = dict(zip(told.ids, told.values.double()))
    entropies, distances = [], []
    for name, logits, last in zip(batch["id"], *[out.double() for out in (task.published(image), task.model(image)[-1])]):
        log_p = logits.log_softmax(0)
        target = [0.2 / 4 + 0.8 * (label == name.split("/")[0]) for label in CLASSES]
        entropies.append(-sum(share * value for share, value in zip(target, log_p)))
        if name in said and teacher == "embeddings":
            distances.append(1 - last @ said[name] / last.norm() / said[name].norm())
        elif name in said:
            p = (said[name][[told.classes.index(label) for label in CLASSES]] / 1.5).softmax(0)
            distances.append(1.5 ** 2 * (p * (p.log() - (logits / 1.5).log_softmax(0))).sum())
    assert 0 < len(distances) < len(entropies) == 13
    terms = task.losses(batch)
    assert terms["cross_entropy"].item() == pytest.approx(0.7 * sum(entropies).item() / 13, rel=1e-5)
    assert terms["teacher"].item() == pytest.approx(3 * sum(distances).item() / len(distances), rel=1e-5)


CASES = [("embeddings", 1), ("logits", 2)]


def in_double(rank, world, data, output):
    torch.set_default_dtype(torch.float64)
    try:
        for teacher, accumulate in CASES:
            train(settings(data / "data", output / f"{teacher}-{accumulate}-{world}", f"teacher={data / teacher}",
                           f"accumulate={accumulate}"), Ranks(rank, world, CPU))
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_two_and_three_ranks_run_the_same_training(data, tmp_path):
    """Thirteen images in a step, in parts of 2 to 13; of some parts the teacher, who knows 12 of 20 images, knows none."""
    task = build_task(settings(data / "data", tmp_path, f"teacher={data / 'logits'}"), Ranks(0, 1, CPU))
    parts = [Batches(task.images, 13, 2, 0, rank, 3)[k]["id"] for k in range(12) for rank in range(3)]
    known = [int(task.targets.teacher.told.join(ids)[1].sum()) for ids in parts]
    assert 0 in known and {len(ids) for ids in parts} == {2, 3}
    in_double(0, 1, data, tmp_path)
    for world in (2, 3):
        run_ranks(world, in_double, data, tmp_path)
    for case in CASES:
        one, *others = (tmp_path / "-".join(map(str, (*case, world))) for world in (1, 2, 3))
        weights = load_file(one / "checkpoints/last/network.safetensors")
        assert len(losses_of(one)) == 6 and min(rows(one, "loss/teacher")) > 0
        assert ("projector.weight" in weights) == (case[0] == "embeddings")
        check_same_training(one, others, COLUMNS)


def stopped_and_resumed(rank, world, data, output):
    ranks = Ranks(rank, world, CPU)
    for teacher, accumulate in (("embeddings", 2), ("logits", 1)):
        more = ["save_every=2", "dropout=0.3", f"teacher={data / teacher}", f"accumulate={accumulate}"]
        whole, halves = (f"{output}/{name}-{teacher}-{world}" for name in ("whole", "halves"))
        train(settings(data / "data", whole, *more), ranks)
        train_until(3, settings(data / "data", halves, *more), pytest.MonkeyPatch(), ClassificationTask, ranks)
        train(settings(data / "data", halves, "resume=auto", *more), ranks)


def test_a_resumed_run_is_the_run_itself_with_dropout(data, tmp_path):
    stopped_and_resumed(0, 1, data, tmp_path)
    run_ranks(2, stopped_and_resumed, data, tmp_path)
    train(settings(data / "data", tmp_path / "without", f"teacher={data / 'logits'}"), Ranks(0, 1, CPU))
    assert losses_of(tmp_path / "without")[0] != losses_of(tmp_path / "whole-logits-1")[0]
    for run in ("embeddings-1", "logits-1", "embeddings-2", "logits-2"):
        whole, halves = tmp_path / f"whole-{run}", tmp_path / f"halves-{run}"
        for column in COLUMNS:
            assert len(rows(whole, column)) == 6 and rows(halves, column) == rows(whole, column), (run, column)
        one, two = (load_file(folder / "checkpoints/last/network.safetensors") for folder in (whole, halves))
        assert all(torch.equal(one[name], two[name]) for name in one)


PARTS = {1: [[7]], 2: [[4, 3], [6, 1]], 3: [[3, 2, 2], [1, 5, 1], [4, 0, 3]]}
KNOWN = [[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1], [0] * 7]   # of seven samples; the second: none on the first ranks


def samples():
    """Seven samples of a distance, as a function of shared weights: x `[7,3]`, weights `[3,4]`, targets `[7,4]`."""
    return [normal(2, name, torch.arange(n)[:, None], torch.arange(m)).double()
            for name, n, m in (("x", 7, 3), ("w", 3, 4), ("t", 7, 4))]


def means(rank, world):
    """(value, gradient of the weights) on this rank, for each way to share the samples and each set of known ones."""
    x, w, t = samples()
    found = []
    for parts in PARTS[world]:
        mine = slice(sum(parts[:rank]), sum(parts[:rank + 1]))
        for known in torch.tensor(KNOWN).bool():
            here = w.clone().requires_grad_()
            distance = (1 - F.cosine_similarity(x[mine] @ here, t[mine])).where(known[mine], 0)
            mean = global_mean(distance, known[mine])
            mean.backward()
            found.append((mean.detach(), here.grad))
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_global_mean_is_that_of_one_process(world):
    """Value and gradient, by a formula of its own: one process, float64, the known samples alone."""
    x, w, t = samples()
    expected = []
    for known in torch.tensor(KNOWN).bool():
        w = w.detach().requires_grad_()
        y = x[known] @ w
        mean = sum(1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for a, b in zip(y, t[known])) / max(1, int(known.sum()))
        gradient, = torch.autograd.grad(mean, w) if len(y) else (torch.zeros_like(w),)
        expected.append((float(torch.as_tensor(mean).detach()), gradient))
    ranks = run_ranks(world, means)
    for case, found in enumerate(zip(*ranks)):
        value, gradient = expected[case % len(KNOWN)]
        assert all(abs(mean - value) <= 1e-14 for mean, _ in found) and len({float(mean) for mean, _ in found}) == 1
        assert torch.allclose(sum(grad for _, grad in found) / world, gradient, rtol=1e-12, atol=1e-15)  # as DDP: the mean


def test_the_order_of_the_teachers_rows_and_classes_does_not_matter(data, tmp_path):
    """Other rows, other columns, further ones: the same training, and the same digest where the same is told."""
    for kind in ("embeddings", "logits"):
        teacher = read_predictions(data / kind)
        assert not set(teacher.ids) <= set(f"{name}/{i:03}.png" for name in CLASSES for i in range(5))
        order = uniform(3, kind, torch.arange(len(teacher.ids))).argsort().tolist()
        assert order != sorted(order)
        told = {teacher.ids[row]: teacher.values[row] for row in order}
        write_predictions(tmp_path / kind, told, teacher.kind, teacher.classes)
        assert read_predictions(tmp_path / kind).digest() == teacher.digest()
        write_predictions(tmp_path / "other", {**told, "new": told[teacher.ids[0]]}, teacher.kind, teacher.classes)
        assert read_predictions(tmp_path / "other").digest() != teacher.digest()
        classes = teacher.classes
        if classes:
            told = {name: vector[[3, 1, 0, 4, 2]] for name, vector in told.items()}
            classes = [classes[c] for c in (3, 1, 0, 4, 2)]
        write_predictions(tmp_path / "moved", {"first": told[teacher.ids[0]], **told}, teacher.kind, classes)
        runs = tmp_path / f"{kind}-1", tmp_path / f"{kind}-2"
        for run, file in zip(runs, (data / kind, tmp_path / "moved")):
            train(settings(data / "data", run, f"teacher={file}", "max_steps=3"), Ranks(0, 1, CPU))
        assert all(rows(runs[0], column) == rows(runs[1], column) for column in COLUMNS)
        one, two = (load_file(run / "checkpoints/last/network.safetensors") for run in runs)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_predictions_are_joined_by_id(tmp_path):
    values = {"a": torch.tensor([1.0, 2.0]), "b\udcff": torch.tensor([3.0, 4.0])}
    write_predictions(tmp_path / "file", values, "logits", ["x", "y"])
    found = read_predictions(tmp_path / "file")
    joined, known = found.join(["b\udcff", "c", "a", "a"])
    assert joined.tolist() == [[3, 4], [0, 0], [1, 2], [1, 2]] and joined.dtype == torch.float32
    assert known.tolist() == [True, False, True, True] and (found.kind, found.classes) == ("logits", ["x", "y"])


ABOUT = {"kind": "embedding", "classes": None}


@pytest.mark.parametrize("ids, values, about, says", [
    (["a", "a"], [[1.0], [2.0]], ABOUT, "'a' comes twice"),
    (["a", "b"], [[1.0], [float("nan")]], ABOUT, "'b' are not finite"),       # so that no rank ever meets one in a step
    (["a"], [[1.0], [2.0]], ABOUT, "1 ids"),
    (["a"], [[1]], ABOUT, "torch.int64"),
    ([], [], ABOUT, "0 ids"),
    ([3], [[1.0]], ABOUT, "texts"),
    ("a", [[1.0]], ABOUT, "texts"),
    (["a"], [[1.0]], {**ABOUT, "kind": "words"}, "'words' is not known"),
    (["a"], [[1.0]], {**ABOUT, "classes": ["x"]}, "embeddings have none"),
    (["a"], [[1.0]], {"kind": "logits", "classes": None}, "a name for each class"),
    (["a"], [[1.0, 2.0]], {"kind": "logits", "classes": ["x", "x"]}, "'x' comes twice"),
    (["a"], [[1.0]], [], "cannot be used"),
    (["a"], [[1.0]], {}, "kind"),
])
def test_a_file_that_is_no_predictions_is_refused(tmp_path, ids, values, about, says):
    text = torch.frombuffer(bytearray(json.dumps(ids).encode()), dtype=torch.uint8)
    save_file({"values": torch.tensor(values), "ids": text}, tmp_path / "file", {"predictions": json.dumps(about)})
    with pytest.raises(UserError, match=says) as error:
        read_predictions(tmp_path / "file")
    assert "\n" not in str(error.value) and str(tmp_path / "file") in str(error.value)


def test_damaged_files_and_predictions_that_are_not_finite_are_refused(data, tmp_path):
    (tmp_path / "half").write_bytes((data / "logits").read_bytes()[:-9])
    (tmp_path / "empty").write_bytes(b"")
    torch.save({"values": torch.ones(1)}, tmp_path / "pickled")
    save_file({"values": torch.ones(1, 1)}, tmp_path / "weights")
    for name in ("half", "empty", "pickled", "weights"):
        with pytest.raises(UserError, match="cannot be used as predictions") as error:
            read_predictions(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not written .the numbers of 'b' are not finite"):
        write_predictions(tmp_path / "new", {"a": torch.ones(2), "b": torch.tensor([1.0, torch.inf])}, "embedding")
    assert not (tmp_path / "new").exists()


def test_what_does_not_fit_the_data_is_named(data, tmp_path):
    (tmp_path / "text").write_text("a teacher")
    write_predictions(tmp_path / "other", {"elsewhere/1.png": torch.ones(3)}, "embedding")
    write_predictions(tmp_path / "few", {"red disc/000.png": torch.ones(2)}, "logits", CLASSES[:2])
    draw(tmp_path / "eval", 1)
    (tmp_path / "eval/red disc").rename(tmp_path / "eval/green disc")
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one/000.png"), drawing(CLASSES[0], 0))
    for change, says in ((f"teacher={tmp_path / 'nowhere'}", "nowhere: no such file"),
                         (f"teacher={tmp_path / 'text'}", "cannot be used as predictions"),
                         (f"teacher={tmp_path / 'other'}",
                          "none of the training samples.*'elsewhere/1.png'.*identity=content"),
                         (f"teacher={tmp_path / 'few'}", "has no class 'red disc'.*2 of 4"),
                         (f"eval_data={tmp_path / 'eval'}", "the class 'green disc'"),
                         (f"data={data / 'data'}", "each folder in it is a class"),
                         (f"data={data / 'data'}:8:labelled", "each folder in it is a class"),
                         (f"data={tmp_path / 'one'}:1:labelled", "1 classes"),
                         ("label_weight=0", "nothing is learned without a teacher"),
                         ("expansion=8", "choose from 1")):
        with pytest.raises(UserError, match=says) as error:
            build_task(settings(data / "data", tmp_path / "run", change), Ranks(0, 1, CPU))
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_other_classes_or_another_teacher_is_refused(data, tmp_path):
    train(settings(data / "data", tmp_path / "run", "max_steps=2", f"teacher={data / 'logits'}"), Ranks(0, 1, CPU))
    renamed = draw(tmp_path / "renamed", 5)
    (renamed / "red frame").rename(renamed / "yellow frame")
    for change, says in ((f"teacher={data / 'embeddings'}", "its teacher is"), ("teacher=", "its teacher is"),
                         ("norm=bn", "its norm is 'ln'"), (f"data={renamed}:1:labelled teacher=", "its classes is")):
        with pytest.raises(UserError, match=says):
            train(settings(data / "data", tmp_path / "run", "resume=auto", f"teacher={data / 'logits'}", *change.split()),
                  Ranks(0, 1, CPU))


def test_the_classes_in_an_untrusted_run_are_checked(trained):
    info, (_, cfg) = read_info(trained / "run"), load_run(trained / "run")
    assert info["classes"] == CLASSES
    for classes in (None, "text", [1, 2], ["a", "a"], ["a"], {}):
        with pytest.raises(UserError, match="does not name the run's classes"):
            ClassificationTask.restore(cfg, {**info, "classes": classes})
