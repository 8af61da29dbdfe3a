"""Stopped, killed, on another number of ranks, with damaged files or a full disk: the run resumes as if nothing happened."""
import errno
import json
import multiprocessing
import os
import random
import signal
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import checkpoint
from engine.checkpoint import Checkpoints, damage, newest_whole, read_manifest, write_file
from engine.distributed import Ranks
from engine.progress import checkpoint_steps
from engine.signals import StopSignals
from inference.errors import UserError
from tasks import Evaluation, build_task, images
from tasks.registration import RegistrationTask
from tests.helpers.ranks import FRESH, run_ranks
from tests.helpers.runs import CPU, centers, load_into, losses_of, rows, settings, train_until
from train_v2 import train


def signalled(step, rank_of_signal, rank, number=signal.SIGTERM):
    """Let the process of one rank get a signal in the middle of an optimizer step. Returns what undoes it."""
    original = RegistrationTask.losses

    def losses(self, batch):
        if self.partial_fc.step == step and rank == rank_of_signal:
            os.kill(os.getpid(), number)
        return original(self, batch)
    RegistrationTask.losses = losses
    return lambda: setattr(RegistrationTask, "losses", original)


ELASTIC = ["log_every=2", "sample_rate=0.5", "resume=auto"]


def part_of_a_run(rank, world, folder, output, step):
    """A run that a signal to its last rank stops after `step` steps; and, before that, the rows that it begins with, saved
    once more by these ranks."""
    torch.set_default_dtype(torch.float64)
    cfg = settings(folder, output, *ELASTIC)
    last, rows = newest_whole(Path(output) / "checkpoints"), None
    if last:
        task = build_task(cfg, Ranks(rank, world, CPU))
        manifest = load_into(task, last)
        rows = {name: value.clone() for name, value in task.partial_fc.row_state().items()}
        with Checkpoints(Path(output) / "once-more", 1) as checkpoints:
            checkpoints.save(manifest["step"], {"network": task.model.state_dict()},
                             {"centres": (task.partial_fc.classes, task.partial_fc.row_state())}, {},
                             {"best": None, "best_step": None, **task.compatibility_keys()})
    signalled(step - 1, world - 1, rank)
    train(cfg, Ranks(rank, world, CPU))
    return rows


def state_of(step_folder):
    """{name: all rows} of a checkpoint's centres."""
    files = sorted(step_folder.glob("centres-*"), key=lambda file: int(file.stem.split("-")[1]))
    parts = [load_file(file) for file in files]
    return len(files), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_two_then_three_then_one_ranks_run_one_training(folder, tmp_path):
    """Each of them stopped by a signal that only its last rank gets, at steps which log_every does not divide."""
    halves = tmp_path / "halves"
    run_ranks(2, part_of_a_run, folder, halves, 3)
    three = run_ranks(3, part_of_a_run, folder, halves, 5)
    assert checkpoint_steps(halves / "checkpoints") == [3, 5]
    written, saved = state_of(halves / "checkpoints/step-3")
    assert written == 2 and set(saved) == {"weight", "momentum_buffer"} and saved["momentum_buffer"].abs().sum() > 0
    again, saved_again = state_of(halves / "once-more/step-3")
    assert again == 3
    torch.set_default_dtype(torch.float64)
    try:
        cfg = settings(folder, tmp_path, *ELASTIC)
        one = build_task(cfg, Ranks(0, 1, CPU))
        load_into(one, halves / "once-more/step-3")
        for name, value in saved.items():
            for other in (torch.cat([rank[name] for rank in three]), saved_again[name], one.partial_fc.row_state()[name]):
                assert torch.equal(value, other)
        for output in (halves, tmp_path / "whole"):
            train(settings(folder, output, *ELASTIC), Ranks(0, 1, CPU))
    finally:
        torch.set_default_dtype(torch.float32)
    assert rows(halves, "step") == [2, 4, 6, 8] and rows(halves, "samples") == [26, 52, 78, 104]
    assert np.allclose(losses_of(halves), losses_of(tmp_path / "whole"), rtol=1e-9, atol=0)
    whole = centers(tmp_path / "whole")
    assert (centers(halves) - whole).norm() <= 1e-9 * whole.norm()
    assert "step 3/8" in (halves / "training.log").read_text()


def killed_at(folder, output, after):
    """A run that kill -9 ends when it has written so many bytes of checkpoints."""
    torch.set_num_threads(1)
    written, crc32 = [0], zlib.crc32

    def counting(data, *value):
        written[0] += len(data)
        if written[0] > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return crc32(data, *value)
    checkpoint.CHUNK, checkpoint.zlib.crc32 = 1 << 12, counting
    train(settings(folder, output, "resume=auto", "save_every=1"), Ranks(0, 1, CPU))


def test_kill_9_at_random_bytes_loses_nothing(folder, tmp_path):
    train(settings(folder, tmp_path / "whole", "save_every=1"), Ranks(0, 1, CPU))
    one = sum(file.stat().st_size for file in (tmp_path / "whole/checkpoints/last").iterdir())
    processes = multiprocessing.get_context(FRESH)
    draw, rounds = random.Random(0), 0
    while True:
        process = processes.Process(target=killed_at, args=(folder, tmp_path / "killed", draw.randrange(one // 2, 3 * one)))
        process.start()
        process.join()
        rounds += 1
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL and rounds < 60
        for step in checkpoint_steps(tmp_path / "killed/checkpoints"):
            assert damage(tmp_path / f"killed/checkpoints/step-{step}") is None
    assert rounds >= 5
    assert not list((tmp_path / "killed").glob("earlier-*")), "it must not have begun anew"
    assert rows(tmp_path / "killed", "step") == list(range(1, 9))
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    for file in ("network", "optimizer", "centres-0-56"):
        one, two = (load_file(tmp_path / name / f"checkpoints/last/{file}.safetensors") for name in ("whole", "killed"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert not list((tmp_path / "killed/checkpoints").glob(".*"))


def test_damaged_checkpoints_are_named_and_passed_over(folder, tmp_path, capsys):
    more = ["save_every=1", "max_steps=5", "keep_checkpoints=5"]
    train(settings(folder, tmp_path / "run", *more), Ranks(0, 1, CPU))
    saved = tmp_path / "run" / "checkpoints"
    before = losses_of(tmp_path / "run")
    rows_file = saved / "step-5" / "centres-0-56.safetensors"
    flipped = bytearray(rows_file.read_bytes())
    flipped[-9] ^= 4
    rows_file.write_bytes(flipped)
    network = saved / "step-4" / "network.safetensors"
    network.write_bytes(network.read_bytes()[:-1])
    (saved / "step-3" / "optimizer.safetensors").unlink()
    manifest = saved / "step-2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
    capsys.readouterr()
    with pytest.raises(UserError, match="last: damaged .centres-0-56.safetensors: not what was written"):
        train(settings(folder, tmp_path / "run", *more, f"resume={saved / 'last'}"), Ranks(0, 1, CPU))
    train(settings(folder, tmp_path / "run", *more, "resume=auto"), Ranks(0, 1, CPU))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resume=auto:")]
    for line, step, reason in zip(warnings, (5, 4, 3, 2), (
            "centres-0-56.safetensors: not what was written", "bytes", "optimizer.safetensors: No such file",
            "manifest.json: not what was written")):
        assert f"step-{step} is damaged" in line and reason in line
    assert len(warnings) == 4
    assert losses_of(tmp_path / "run") == before and checkpoint_steps(saved) == [1, 2, 3, 4, 5]  # gone on from step 1
    assert newest_whole(saved).name == "step-5"
    assert checkpoint_steps(tmp_path / "run/earlier-1/checkpoints") == [2, 3, 4, 5]
    for step in range(1, 6):
        (saved / f"step-{step}" / "manifest.json").write_text("{")
    train(settings(folder, tmp_path / "run", *more, "resume=auto"), Ranks(0, 1, CPU))
    assert losses_of(tmp_path / "run") == before and losses_of(tmp_path / "run/earlier-2") == before


def test_runs_of_earlier_versions_are_resumed(folder, tmp_path, monkeypatch):
    """Their manifests have `updates`, one sum of losses and no keys that came later; their configs name no task."""
    more = ["save_every=3", "centres_optimizer=adamw", "centres_lr=1e-3", "ema=0.5"]
    train(settings(folder, tmp_path / "whole", *more), Ranks(0, 1, CPU))
    train_until(5, settings(folder, tmp_path / "halves", *more), monkeypatch)
    older = tmp_path / "halves/checkpoints/step-3"
    manifest = read_manifest(older, {})
    for key in ("terms", "crc32", "sampler", "fit", "layout"):
        manifest.pop(key, None)
    checkpoint.write_manifest(older, {**manifest, "updates": 3})
    config = tmp_path / "halves/config.json"
    config.write_text(json.dumps({key: value for key, value in json.loads(config.read_text()).items()
                                  if key not in ("task", "fit", "identity", "sampler", "layout", "centres_init")}))
    train(settings(folder, tmp_path / "halves", "resume=auto", *more), Ranks(0, 1, CPU))
    assert losses_of(tmp_path / "halves") == losses_of(tmp_path / "whole")
    assert torch.equal(centers(tmp_path / "halves"), centers(tmp_path / "whole"))


@pytest.mark.parametrize("change", [{"skipped": None}, {"running": [1]}, {"running": "x"}, {"terms": {}}, {"in_a_row": []}])
def test_counters_of_the_wrong_form(folder, tmp_path, change):
    train(settings(folder, tmp_path, "max_steps=2"), Ranks(0, 1, CPU))
    last = tmp_path / "checkpoints/step-2"
    manifest = read_manifest(last, {}) | change
    checkpoint.write_manifest(last, {key: value for key, value in manifest.items() if key != "crc32" and value is not None})
    with pytest.raises(UserError, match="step-2: damaged"):
        train(settings(folder, tmp_path, "resume=auto"), Ranks(0, 1, CPU))


OF_A_FILE = {"bytes": 1, "crc32": "00000000"}


@pytest.mark.parametrize("content", [
    "", "\xff", "null", "[]", "[" * 100_000, "{}", {"files": {}}, {"step": "3", "files": {}}, {"step": 3, "files": []},
    {"step": 3, "files": {"a": 5}}, {"step": 3, "files": {"a": {}}}, {"step": 3, "files": {"../a": OF_A_FILE}},
    {"step": 3, "files": {"/etc/passwd": OF_A_FILE}}])
def test_an_untrusted_manifest(tmp_path, content):
    if isinstance(content, dict):
        checkpoint.write_manifest(tmp_path, content)
    else:
        (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    assert damage(tmp_path) == "manifest.json: not what was written"
    with pytest.raises(UserError, match="not a checkpoint") as error:
        read_manifest(tmp_path, {})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_full_disk_is_said_and_the_run_goes_on(folder, tmp_path, monkeypatch, capsys):
    original = checkpoint.write_file

    def write(file, tensors):
        if file.parent.name.startswith(".step-4.") and file.name.startswith("network"):
            file.write_bytes(b"what still fits")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return original(file, tensors)
    monkeypatch.setattr(checkpoint, "write_file", write)
    more = ["save_every=2", "max_steps=5", "keep_checkpoints=5"]
    train(settings(folder, tmp_path / "run", *more), Ranks(0, 1, CPU))
    said = [line for line in capsys.readouterr().err.splitlines() if "not written" in line]
    assert len(said) == 1 and "checkpoint of step 4" in said[0] and "No space left on device" in said[0]
    assert "the run continues, its newest checkpoint is that of step 2" in said[0]
    saved = tmp_path / "run" / "checkpoints"
    assert checkpoint_steps(saved) == [2, 5] and damage(saved / "step-2") is damage(saved / "last") is None
    assert not list(saved.glob(".*")) and len(losses_of(tmp_path / "run")) == 5


def one_rank_has_no_room(rank, world, folder, output):
    original = checkpoint.write_file

    def write(file, tensors):
        if rank == 1 and file.parent.name.startswith(".step-4."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return original(file, tensors)
    checkpoint.write_file = write
    train(settings(folder, output, "save_every=2", "keep_checkpoints=9", "max_steps=5"), Ranks(rank, world, CPU))


def test_no_checkpoint_without_every_rank(folder, tmp_path):
    run_ranks(2, one_rank_has_no_room, folder, tmp_path)
    assert checkpoint_steps(tmp_path / "checkpoints") == [2, 5]
    said = (tmp_path / "training.log").read_text()
    assert "checkpoint of step 4 not written (rank 1: [Errno 28] No space left on device" in said


@pytest.mark.parametrize("higher_is_better, values", [(True, [0.5, 0.9, 0.7, 0.6, 0.8]), (False, [0.5, 0.1, 0.3, 0.4, 0.2])])
def test_the_last_ones_and_the_best_are_kept(folder, tmp_path, monkeypatch, higher_is_better, values):
    monkeypatch.setattr(images, "find_images", lambda folder: None)
    scores = iter(values)

    def evaluate(self):
        score = next(scores)
        return Evaluation({"score": score}, "score", higher_is_better, {"score": score})
    monkeypatch.setattr(RegistrationTask, "evaluate", evaluate)
    more = ["save_every=1", "eval_every=1", "eval_data=there", "keep_checkpoints=2"]
    train(settings(folder, tmp_path, *more, "max_steps=3"), Ranks(0, 1, CPU))
    train(settings(folder, tmp_path, *more, "max_steps=5", "resume=auto"), Ranks(0, 1, CPU))
    saved = tmp_path / "checkpoints"
    assert checkpoint_steps(saved) == [2, 4, 5]
    assert os.readlink(saved / "last") == "step-5" and os.readlink(saved / "best") == "step-2"
    assert json.loads((tmp_path / "eval.json").read_text())["score"] == values[1]
    best = load_file(saved / "best/network.safetensors")
    assert all(torch.equal(value, best[key]) for key, value in torch.load(tmp_path / "model.pt", weights_only=True).items())


def test_saved_by_the_clock(folder, tmp_path):
    train(settings(folder, tmp_path, "save_every=0", "save_minutes=1e-9", "max_steps=3", "keep_checkpoints=9"),
          Ranks(0, 1, CPU))
    assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2, 3]
    assert not Checkpoints(tmp_path / "checkpoints", 1).due(0)


def test_the_step_does_not_wait_for_the_disk(folder, tmp_path, monkeypatch):
    """What is written is what was there when the save began, however slow the disk and whatever the run did since."""
    written, original = threading.Event(), checkpoint.write_file

    def slow(file, tensors):
        assert written.wait(30)
        return original(file, tensors)
    monkeypatch.setattr(checkpoint, "write_file", slow)
    task = build_task(settings(folder, tmp_path), Ranks(0, 1, CPU))
    before = task.partial_fc.weight.detach().clone()
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        checkpoints.save(1, {}, {"centres": (task.partial_fc.classes, task.partial_fc.row_state())}, {},
                         {"best": None, "best_step": None})
        task.partial_fc.weight.data += 1
        written.set()
    assert torch.equal(centers(tmp_path), before)


def test_files_are_what_safetensors_writes(tmp_path):
    tensors = {"half": torch.randn(3, 5).bfloat16(), "flag": torch.tensor([True, False, True]), "step": torch.tensor(7),
               "double": torch.randn(2, 2, dtype=torch.float64), "none": torch.zeros(0, 4), "é\n\"": torch.randn(3)}
    about = write_file(tmp_path / "ours.safetensors", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours, theirs = (load_file(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    data = (tmp_path / "ours.safetensors").read_bytes()
    assert about == {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}


def a_run_that_does_not_end(file):
    with StopSignals():
        Path(file).touch()
        time.sleep(30)  # continues after a signal
        time.sleep(30)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = multiprocessing.get_context(FRESH).Process(target=a_run_that_does_not_end, args=(tmp_path / "there",))
    process.start()
    while not (tmp_path / "there").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(1.2)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == -signal.SIGINT


def looks_elsewhere(rank, world, folder):
    with pytest.raises(UserError, match="rank 1 does not see .*; give a folder that every machine sees"):
        Checkpoints(Path(folder) / str(rank), 1)


def test_a_folder_that_not_every_machine_sees_is_refused(tmp_path):
    run_ranks(2, looks_elsewhere, tmp_path)


def test_signals_are_noted_and_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's copy of the terminal's
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.seen == "SIGINT"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
