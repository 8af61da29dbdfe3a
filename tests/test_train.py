"""The loop: the same training on any number of ranks, resumed, accumulated; what is skipped and what is refused.
"""
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tasks
from augment import Augment
from configs import load_run
from engine.checkpoint import write_manifest
from engine.distributed import Ranks
from engine.optimizer import decay_groups, make_optimizer
from engine.parallel import prepare
from inference.errors import UserError
from tasks import build_task
from tasks.registration import RegistrationTask
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, centers, load_into, losses_of, rows, settings, stop_and_resume, stop_at, train_until
from train_v2 import train


def in_double(rank, world, folder, output, more):
    torch.set_default_dtype(torch.float64)
    train(settings(folder, f"{output}/{world}", *more), Ranks(rank, world, CPU))


@pytest.mark.parametrize("more", [
    ["max_steps=50"],
    ["max_steps=50", "sample_rate=0.5", "accumulate=2", "margin=arcface", "centres_optimizer=adamw", "centres_lr=1e-3"],
    ["max_steps=20", "layout=8", "centres_init=images", "augment=natural", "sample_rate=0.5"],
], ids=["full-sgd", "sampled-accumulated-adamw", "layout-centres-at-images"])
def test_one_two_and_three_ranks_run_the_same_training(folder, tmp_path, more):
    for world in (1, 2, 3):
        run_ranks(world, in_double, folder, tmp_path, more)
    losses, weights = losses_of(tmp_path / "1"), centers(tmp_path / "1")
    assert len(losses) == int(more[0].split("=")[1]) and np.isfinite(losses).all() and np.std(losses) > 1
    for world in (2, 3):
        assert len(list((tmp_path / str(world) / "checkpoints/last").glob("centres-*"))) == world
        assert np.allclose(losses_of(tmp_path / str(world)), losses, rtol=1e-9, atol=0)
        assert (centers(tmp_path / str(world)) - weights).norm() <= 1e-9 * weights.norm()


def test_a_resumed_run_is_the_run_itself(folder, tmp_path):
    more = ["save_every=3", "sample_rate=0.5", "accumulate=2"]
    whole, halves = stop_and_resume(5, lambda output, *keys: settings(folder, output, *more, *keys), tmp_path)
    assert rows(halves, "step") == list(range(1, 9))  # cut back to step 3, then on: no row twice
    assert torch.equal(centers(whole), centers(halves))


def test_the_config_chooses_the_sampler(folder, tmp_path, monkeypatch):
    """With seven images and eight views each, a class has one sample: m = 2 shows it twice side by side."""
    seen = []
    monkeypatch.setattr(RegistrationTask, "losses", lambda self, batch, losses=RegistrationTask.losses: (
        seen.append(batch["label"].tolist()), losses(self, batch))[1])
    (tmp_path / "alike.tsv").write_text("".join(f"{i}.png\t{(i + 1) % 7}.png\n" for i in range(7)))
    for name, more in (("per_class", ["batch_size=12"]), ("hard_negatives", ["batch_size=12", "expansion=1",
                       f"look_alikes={tmp_path / 'alike.tsv'}", "look_alike_classes=2"])):
        seen.clear()
        train(settings(folder, tmp_path / name, f"sampler={name}", "samples_per_class=2", "max_steps=3", *more),
              Ranks(0, 1, CPU))
        assert all(batch[i] == batch[i + 1] for batch in seen for i in range(0, 12, 2)), name
        blocks = [batch[i:i + 4:2] for batch in seen for i in range(0, 12, 4)]
        assert name == "per_class" or all(second == (first + 1) % 7 for first, second in blocks)
    with pytest.raises(UserError, match="look_alikes=FILE"):
        train(settings(folder, tmp_path / "none", "sampler=hard_negatives"), Ranks(0, 1, CPU))
    before = sorted((tmp_path / "per_class").rglob("*"))
    with pytest.raises(UserError, match="batch_size=13"):
        train(settings(folder, tmp_path / "per_class", "sampler=per_class"), Ranks(0, 1, CPU))
    assert sorted((tmp_path / "per_class").rglob("*")) == before  # told before the earlier run is moved aside
    with pytest.raises(UserError, match="its sampler is 'per_class', here it is 'permutation'"):
        train(settings(folder, tmp_path / "per_class", "batch_size=12", "resume=auto"), Ranks(0, 1, CPU))


def test_the_task_that_the_documentation_writes_trains(folder, tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parent.parent / "docs/tasks.md").read_text()
    example, = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Task(" in block)
    scope = {"__name__": "example"}
    exec(compile(example, "docs/tasks.md", "exec"), scope)
    cfg = settings(folder, tmp_path / "run", "max_steps=2", "expansion=1")
    cfg.update({name: key.default for name, key in scope["FoldersTask"].defaults.items() if name not in cfg})
    monkeypatch.setattr(tasks, "get_task", lambda name: scope["FoldersTask"])
    train(cfg, Ranks(0, 1, CPU))
    assert np.isfinite(losses_of(tmp_path / "run")).all() and (tmp_path / "run/model.pt").exists()
    cfg.eval_data = str(folder)
    with pytest.raises(UserError, match="has no evaluation"):
        train(cfg, Ranks(0, 1, CPU))


def test_compile(folder, tmp_path, monkeypatch):
    """The eager backend stands in for the C++ compiler, which takes a minute; then no compiler at all."""
    compiled, real = [], torch.compile

    def standing_in(module):
        compiled.append(module)
        return real(module, backend="eager")
    train(settings(folder, tmp_path / "plain"), Ranks(0, 1, CPU))
    monkeypatch.setattr(torch, "compile", standing_in)
    train(settings(folder, tmp_path / "compiled", "compile=true"), Ranks(0, 1, CPU))
    assert losses_of(tmp_path / "compiled") == losses_of(tmp_path / "plain") and len(compiled) == 1

    def missing(module):
        raise RuntimeError("no C++ compiler found\nand more of that")
    monkeypatch.setattr(torch, "compile", missing)
    train(settings(folder, tmp_path / "missing", "compile=true"), Ranks(0, 1, CPU))
    assert losses_of(tmp_path / "missing") == losses_of(tmp_path / "plain")
    assert "compile=true: not possible here (no C++ compiler found)" in (tmp_path / "missing/training.log").read_text()


def test_accumulation_is_exact(folder, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        for accumulate in (1, 3):
            train(settings(folder, tmp_path / str(accumulate), f"accumulate={accumulate}"), Ranks(0, 1, CPU))
    finally:
        torch.set_default_dtype(torch.float32)
    # One loss is rounded by 1e-13 (tests/helpers/head.py, bounds), and eight steps pass it on; a wrong weight shows at 1e-3.
    assert np.allclose(losses_of(tmp_path / "1"), losses_of(tmp_path / "3"), rtol=1e-10, atol=0)
    assert torch.allclose(centers(tmp_path / "1"), centers(tmp_path / "3"), rtol=1e-10, atol=1e-14)


def test_a_loss_that_is_not_finite_is_skipped_and_counted(folder, tmp_path, monkeypatch):
    seen = []
    original = RegistrationTask.begin_step

    def begin_step(self, step, factor):
        centers = self.partial_fc.row_state().values()
        seen.append([p.detach().clone() for p in (*self.model.parameters(), *centers)])
        return original(self, step, factor)
    monkeypatch.setattr(RegistrationTask, "begin_step", begin_step)
    stop_at(monkeypatch, 3, lambda value: {"nan": sum(value.values()) * torch.nan})
    train(settings(folder, tmp_path / "run"), Ranks(0, 1, CPU))
    changed = [any(not torch.equal(a, b) for a, b in zip(before, after)) for before, after in zip(seen, seen[1:])]
    assert changed == [True, True, True, False, True, True, True]
    assert rows(tmp_path / "run", "skipped") == [0, 0, 0, 1, 1, 1, 1, 1]
    assert np.isfinite(losses_of(tmp_path / "run")).tolist() == [True] * 3 + [False] + [True] * 4  # not a false 0


def test_a_broken_batch_does_not_spoil_batchnorm(folder, tmp_path, monkeypatch):
    augmented = Augment.forward

    def forward(self, image, position, *view_and_size):
        return augmented(self, image, position, *view_and_size) * (torch.nan if position[0] == 3 * 13 else 1)
    monkeypatch.setattr(Augment, "forward", forward)
    train(settings(folder, tmp_path / "run", "network=test_efficientnet", "norm=lbn"), Ranks(0, 1, CPU))
    assert rows(tmp_path / "run", "skipped")[-1] == 1
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert any("running_var" in name for name in saved)
    assert all(value.isfinite().all() for value in saved.values())


def test_rates_and_margin_follow_the_step_and_the_batch(folder, tmp_path):
    more = ["lr=2e-3", "centres_lr=0.3", "warmup=0.25", "margin_warmup=0.5"]
    train(settings(folder, tmp_path / "run", *more), Ranks(0, 1, CPU))
    factor = [1 / 3, 2 / 3] + [1 - i / 6 for i in range(6)]
    assert np.allclose(rows(tmp_path / "run", "lr"), 2e-3 * (13 / 512) ** 0.5 * np.array(factor))   # AdamW: square root
    assert np.allclose(rows(tmp_path / "run", "centres_lr"), 0.3 * 13 / 512 * np.array(factor))      # SGD: linear
    assert np.allclose(rows(tmp_path / "run", "margin"), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_clipping_holds_the_gradient(folder, tmp_path):
    """A gradient of 1e-12 is far below AdamW's epsilon, so the network must stay where it is."""
    torch.manual_seed(0)
    for clip in ("1e-12", "0"):
        train(settings(folder, tmp_path / clip, f"clip={clip}", "max_steps=1", "weight_decay=0"), Ranks(0, 1, CPU))
    held, free = (torch.load(tmp_path / clip / "model.pt", weights_only=True) for clip in ("1e-12", "0"))
    start = build_task(settings(folder, tmp_path), Ranks(0, 1, CPU)).model.state_dict()
    distance = [sum((state[name] - start[name]).abs().sum() for name in start).item() for state in (held, free)]
    assert distance[0] < 1e-3 * distance[1]


def test_bfloat16_is_near_float32(folder, tmp_path):
    for precision in ("fp32", "bf16"):
        train(settings(folder, tmp_path / precision, f"precision={precision}"), Ranks(0, 1, CPU))
    fine, coarse = losses_of(tmp_path / "fp32"), losses_of(tmp_path / "bf16")
    assert np.allclose(fine, coarse, rtol=0.1) and fine != coarse


def test_an_earlier_run_is_neither_lost_nor_mixed_in(folder, tmp_path):
    out = tmp_path / "run"
    train(settings(folder, out, "max_steps=2"), Ranks(0, 1, CPU))
    kept = (out / "config.json").read_text()
    for change in ("data=none", "resume=auto embedding_size=8"):  # refused: nothing of the run may change
        with pytest.raises(UserError):
            train(settings(folder, out, *change.split()), Ranks(0, 1, CPU))
    assert (out / "config.json").read_text() == kept
    load_run(out)
    train(settings(folder, out, "max_steps=1", "embedding_size=8"), Ranks(0, 1, CPU))
    assert load_run(out)[1].embedding_size == 8 and load_run(out / "earlier-1")[1].embedding_size == 16
    assert len(losses_of(out)) == 1 and len(losses_of(out / "earlier-1")) == 2


def stopped_and_resumed(rank, world, folder, output):
    more, ranks = ["save_every=3", "sample_rate=0.5"], Ranks(rank, world, CPU)
    train(settings(folder, f"{output}/whole", *more), ranks)
    train_until(5, settings(folder, f"{output}/halves", *more), pytest.MonkeyPatch(), ranks=ranks)
    train(settings(folder, f"{output}/halves", "resume=auto", *more), ranks)


def test_two_ranks_resume_and_agree_on_unusable_files(folder, tmp_path):
    """The spoiled files fall to different ranks; both must leave out both, or class ids would differ."""
    (folder / "0-spoiled.png").write_bytes(b"")
    (folder / "9-spoiled.png").write_text("no picture")
    run_ranks(2, stopped_and_resumed, folder, tmp_path)
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["skipped"] == 2
    assert (tmp_path / "whole" / "training.log").read_text().count("skipped: ") == 2
    assert losses_of(tmp_path / "halves") == losses_of(tmp_path / "whole")
    assert torch.equal(centers(tmp_path / "halves"), centers(tmp_path / "whole"))


def different_data(rank, world, folder, output):
    if rank == 1:
        folder = Path(output) / "other"
    with pytest.raises(UserError) as error:
        build_task(settings(folder, output), Ranks(rank, world, CPU))
    return str(error.value)


def test_ranks_that_see_different_files_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "0.png").unlink()
    said = run_ranks(2, different_data, folder, tmp_path)
    assert "finds 7 images and rank 1 finds 6" in said[0] and "finds 6 images and rank 0 finds 7" in said[1]


def test_norms_and_biases_do_not_decay():
    """The reference's names for them match nothing, so all of them decay."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4))
    optimizer = make_optimizer(decay_groups(network.named_parameters(), 1e-3, "sqrt", 0.1), 512)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    weights = {id(network[0].weight), id(network[3].weight)}
    assert {key for key, value in decay.items() if value} == weights
    assert len(decay) == len(list(network.parameters()))


def parallelism(rank, world, folder, output):
    task = build_task(settings(folder, output), Ranks(rank, world, CPU))
    forward, _ = prepare(task.model, task.example, task.ranks, False, "fp32")
    return {"wraps_network": forward.module is task.model,
            "head_is_apart": not {id(p) for p in task.partial_fc.parameters()} & {id(p) for p in forward.parameters()},
            "head_is_plain": type(task.partial_fc).__name__}


def test_only_the_network_is_averaged_over_ranks(folder, tmp_path):
    """DistributedDataParallel around a sharded head would average different classes."""
    for said in run_ranks(2, parallelism, folder, tmp_path):
        assert said == {"wraps_network": True, "head_is_apart": True, "head_is_plain": "PartialFC"}


def test_the_run_folder_holds_everything(folder, tmp_path):
    types = tmp_path / "types"
    for i in range(3):
        (types / str(i)).mkdir(parents=True)
        for name in ("reference", "photo"):
            cv2.imwrite(str(types / str(i) / f"{name}.png"), cv2.imread(str(folder / f"{i}.png")))
    out = tmp_path / "run"
    metrics = train(settings(folder, out, f"eval_data={types}", "eval_every=3"), Ranks(0, 1, CPU))
    assert metrics["top1"] == 1  # photo and reference are the same image
    assert json.loads((out / "eval.json").read_text())["auroc"] == metrics["auroc"]
    assert json.loads((out / "config.json").read_text())["batch_size"] == 13
    assert json.loads((out / "run.json").read_text())["num_classes"] == 56
    assert len(rows(out, "auroc")) == 3
    log = (out / "training.log").read_text()
    assert "step 8/8 loss" in log and "img/s ETA" in log and "margin" in log and "eval 3/8 auroc" in log
    assert list((out / "tensorboard").iterdir())
    assert (out / "checkpoints/best/manifest.json").exists() and (out / "model.pt").exists()
    saved = torch.load(out / "model.pt", weights_only=True)
    best = load_file(out / "checkpoints/best/network.safetensors")
    assert all(torch.equal(saved[key], best[key]) for key in best)


def test_a_checkpoint_of_another_config_or_a_damaged_one_is_refused(folder, tmp_path):
    train(settings(folder, tmp_path / "run", "max_steps=2"), Ranks(0, 1, CPU))
    for change, says in (("embedding_size=8", "embedding_size is 16, here it is 8"), ("expansion=1", "num_classes is 56"),
                         ("head=gap", "head is 'flatten'"), (f"resume={folder}", "not a checkpoint")):
        with pytest.raises(UserError, match=says):
            train(settings(folder, tmp_path / "run", "resume=auto", change), Ranks(0, 1, CPU))
    last = tmp_path / "run" / "checkpoints" / "last"
    for name in ("network.safetensors", "optimizer.safetensors", "centres-0-56.safetensors"):
        whole = (last / name).read_bytes()
        (last / name).write_bytes(whole[:len(whole) // 2])
        with pytest.raises(UserError, match=f"damaged .{name}"):
            train(settings(folder, tmp_path / "run", f"resume={last}"), Ranks(0, 1, CPU))
        (last / name).write_bytes(whole)
    manifest = json.loads((last / "manifest.json").read_text())
    (last / "centres-0-56.safetensors").rename(last / "centres-0-30.safetensors")
    manifest["files"]["centres-0-30.safetensors"] = manifest["files"].pop("centres-0-56.safetensors")
    del manifest["crc32"]
    write_manifest(last, manifest)
    with pytest.raises(UserError, match="26 rows of centres are missing"):
        train(settings(folder, tmp_path / "run", "resume=auto"), Ranks(0, 1, CPU))


def test_impossible_runs_are_refused_before_they_start(folder, tmp_path):
    for change, says in (("eval_data=none", "none: no such folder"), ("data=none", "none: no such folder"),
                         ("network=test_resnet batch_size=1", "this network needs 2"),
                         (f"output={folder}/0.png", "cannot be written")):
        with pytest.raises(UserError, match=says):
            train(settings(folder, tmp_path / "run", *change.split()), Ranks(0, 1, CPU))
    with pytest.raises(UserError, match="7 classes cannot be shared by 8"):
        train(settings(folder, tmp_path / "run", "expansion=1"), Ranks(0, 8, CPU))


def shards_of(rank, world, folder, output):
    """Rows of each rank after loading a checkpoint that one process wrote."""
    task = build_task(settings(folder, output), Ranks(rank, world, CPU))
    load_into(task, Path(output) / "checkpoints" / "last")
    return task.partial_fc.weight.detach()


def test_rows_of_centres_are_read_by_class_id(folder, tmp_path):
    train(settings(folder, tmp_path / "run", "max_steps=2"), Ranks(0, 1, CPU))
    assert torch.equal(torch.cat(run_ranks(3, shards_of, folder, tmp_path / "run")), centers(tmp_path / "run"))


def centers_at_images(rank, world, folder, output):
    """This rank's class centers as they start, and the plain embeddings of the first image of each of its classes."""
    cfg = settings(folder, output, "centres_init=images", "expansion=8", "layout=8")
    task = build_task(cfg, Ranks(rank, world, CPU))
    task.begin_step(0, 1.0)
    image, view, label = task.images.locate(torch.arange(len(task.images)))
    own = (label >= task.partial_fc.classes.start) & (label < task.partial_fc.classes.stop)
    whole = task.images.pixels(image[own]).float() / 255
    flipped = [torch.flip(torch.rot90(x, int(v) % 4, (1, 2)), (1,)) if v >= 4 else torch.rot90(x, int(v) % 4, (1, 2))
               for x, v in zip(whole, view[own])]
    with torch.no_grad():
        shown = nn.functional.interpolate(torch.stack(flipped), cfg.image_size, mode="bilinear")
        return {"centers": task.partial_fc.weight.detach(), "embeddings": task.published.eval()(shown), "label": label[own]}


def test_class_centers_begin_at_the_images_of_their_classes(folder, tmp_path):
    alone, = run_ranks(1, centers_at_images, folder, tmp_path / "1")
    length = 0.01 * alone["centers"].shape[1] ** 0.5
    assert torch.allclose(alone["centers"].norm(dim=1), torch.tensor(length))
    first = {int(label): i for i, label in reversed(list(enumerate(alone["label"])))}
    expected = alone["embeddings"][[first[c] for c in range(len(alone["centers"]))]]
    # The view is taken in one resampling with the change of size: see Augment.
    assert nn.functional.cosine_similarity(alone["centers"], expected).min() > 0.999
    others = nn.functional.cosine_similarity(alone["centers"], expected.roll(1, 0))
    assert others.mean() < 0.99
    parts = run_ranks(3, centers_at_images, folder, tmp_path / "3")
    assert torch.allclose(torch.cat([part["centers"] for part in parts]), alone["centers"], atol=1e-6)
