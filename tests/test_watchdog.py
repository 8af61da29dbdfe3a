"""A rank that fails, is killed, is stopped or stands still: every rank that still can ends with one line that says so."""
import multiprocessing
import os
import re
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist

from engine import watchdog
from engine.distributed import Ranks
from inference.errors import UserError
from losses import get_margin
from partial_fc import PartialFC, memory_needed
from tasks import registration as tasks
from tests.helpers.ranks import FRESH, join, run_ranks
from tests.helpers.runs import CPU, rows, settings, stop_at
from train_v2 import run_cli, train

AT = 3  # the step in which it happens, counted from 1


def fails(self):
    raise UserError("a\udcff.png: gone")  # a byte that is no UTF-8, which the store could not take


def has_a_bug(self):
    return {}["no such thing"]


def is_killed(self):
    os.kill(os.getpid(), signal.SIGKILL)


def is_stopped(self):
    time.sleep(0.5)  # it has then told where it is
    os.kill(os.getpid(), signal.SIGSTOP)


def stands_still(self):
    time.sleep(1000)


def takes_all_memory(self):
    torch.empty(1 << 50)


def rank_of_a_run(rank, world, folder, output, who, does):
    """What `train_v2.py` does as one rank, its words in a file; on rank `who` `does` happens when a batch is wanted."""
    os.dup2(os.open(f"{output}/said-{rank}", os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    torch.set_num_threads(1)
    watchdog.PERIOD, watchdog.Watchdog.__init__.__defaults__ = 0.2, (0.2,)
    batches = tasks.RegistrationTask.batches

    def spoiled(self, first_step):
        for step, batch in enumerate(batches(self, first_step), 1):
            if step == AT and rank == who:
                does(self)
            yield batch
    tasks.RegistrationTask.batches = spoiled

    def main():
        limit = 0.05 if does in (stands_still, is_stopped) else 10
        train(settings(folder, output, f"stall_minutes={limit}"), join(rank, world, f"{output}/rendezvous"))
    run_cli(main)


def run_of(world, folder, output, who, does):
    """(exit status, what it said) of each rank."""
    processes = [multiprocessing.get_context(FRESH).Process(target=rank_of_a_run,
                                                            args=(rank, world, folder, output, who, does))
                 for rank in range(world)]
    for process in processes:
        process.start()
    for rank, process in enumerate(processes):
        if rank != who or does is not is_stopped:
            process.join(60)
    stuck = [process.kill() or rank for rank, process in enumerate(processes) if process.is_alive()]
    assert stuck == ([who] if does is is_stopped else []), f"ranks {stuck} did not end"
    for process in processes:
        process.join()
    said = [(output / f"said-{rank}").read_text() for rank in range(world)]
    return [process.exitcode for process in processes], [text[text.find("error:"):] for text in said]


@pytest.mark.parametrize("world, who, does, own, others", [
    (3, 1, fails, r"error: a\\udcff.png: gone\n", rf"rank 1 ended at step {AT} \(loading images\): a\\udcff.png: gone\n"),
    (2, 0, takes_all_memory, rf"error: out of memory at step {AT} \(loading images\): raise accumulate or lower batch_size",
     rf"rank 0 ended at step {AT} \(loading images\): out of memory"),
    (3, 2, is_killed, None, rf"contact with the other ranks was lost at step {AT} \(computing\) "),
    (3, 1, stands_still, r"error: rank 1 stops: the run has stood still for \d+ s",
     rf"; furthest behind: rank 1, at step {AT} \(loading images\)\."),
    (1, 0, stands_still,
     rf"error: the run has stood still for \d+ s; furthest behind: rank 0, at step {AT} \(loading images\)\.", ""),
    (3, 1, is_stopped, None, rf"rank 1 has said nothing for \d+ s, last at step {AT} \(loading images\): "),
    (2, 0, is_stopped, None, rf"rank 0 has said nothing for \d+ s, last at step {AT} \(loading images\): "),
])
def test_every_rank_ends_with_a_line(folder, tmp_path, world, who, does, own, others):
    status, said = run_of(world, folder, tmp_path, who, does)
    for rank in range(world):
        if rank == who and own is None:
            assert status[rank] == -signal.SIGKILL
            continue
        assert status[rank] == 2 and said[rank].count("\n") == 1, said[rank]
        assert re.match(own if rank == who else f"error: rank {rank} stops: .*{others}", said[rank]), said[rank]
    if status[0] == 2:
        assert said[0].strip() in (tmp_path / "training.log").read_text()


def test_a_bug_keeps_its_traceback_and_the_others_are_told(folder, tmp_path):
    status, said = run_of(2, folder, tmp_path, 1, has_a_bug)
    assert status == [2, 1]
    assert said[0] == f"error: rank 0 stops: rank 1 ended at step {AT} (loading images): KeyError: 'no such thing'\n"
    assert "Traceback" in (tmp_path / "said-1").read_text()


def test_an_evaluation_may_take_its_time():
    dog = watchdog.Watchdog(Ranks(0, 1, CPU), 1)
    for phase in watchdog.PHASES:
        dog.at(7, phase)
        dog._seen = {0: ([1, 7, phase], 50.0, 0.0)}
        assert (dog._overdue(100.0) is not None) == (phase in ("loading images", "computing", "saving"))
        assert dog._overdue(50.0) is None


def test_a_run_that_was_itself_put_to_sleep_goes_on(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    dog = watchdog.Watchdog(Ranks(0, 1, CPU), 1, period=1.0)
    dog.at(7, "computing")
    for now, ends in ((1, False), (2, False), (1000, False), (1001, False), (1055, False)):
        clock[0] = now
        assert (dog._look() is not None) == ends
    for now in range(1056, 1130):  # and then really stands still
        clock[0] = now
        if reason := dog._look():
            break
    assert now == 1116 and "at step 7 (computing)" in reason


def test_no_finite_loss_for_many_steps_ends_the_run(folder, tmp_path, monkeypatch):
    never = {"nan": torch.tensor(torch.nan, requires_grad=True)}
    for step in range(2, 8):
        stop_at(monkeypatch, step, lambda value: never)
    more = "log_every=2", "max_skipped=3", "save_every=1"
    with pytest.raises(UserError, match="not finite 4 times in a row, up to step 6: lower the learning rates"):
        train(settings(folder, tmp_path / "run", *more), Ranks(0, 1, CPU))
    assert rows(tmp_path / "run", "skipped") == [0, 2, 4]
    assert "error: the loss" in (tmp_path / "run/training.log").read_text()
    # The run that resumes from step 5 continues the count; and 0 is no limit.
    with pytest.raises(UserError, match="not finite 4 times in a row, up to step 6"):
        train(settings(folder, tmp_path / "run", *more, "resume=auto"), Ranks(0, 1, CPU))
    train(settings(folder, tmp_path / "other", "max_skipped=0"), Ranks(0, 1, CPU))
    assert rows(tmp_path / "other", "skipped")[-1] == 6


def test_losses_that_are_finite_now_and_then_do_not_end_it(folder, tmp_path, monkeypatch):
    for step in (1, 3, 5, 7):
        stop_at(monkeypatch, step, lambda value: {"nan": sum(value.values()) * torch.nan})
    train(settings(folder, tmp_path, "max_skipped=2"), Ranks(0, 1, CPU))
    assert rows(tmp_path, "skipped") == [0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_memory_of_the_centres_is_known_beforehand(folder, tmp_path, monkeypatch, optimizer):
    head = PartialFC(get_margin(settings(folder, tmp_path)), 16, 101, optimizer=optimizer)
    head(torch.randn(4, 16, requires_grad=True), torch.arange(4)).backward()
    tensors = [head.weight, *head.row_state().values(), head._active]
    if optimizer == "adamw":
        tensors.append(head.weight.grad)
    whole = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    assert memory_needed(101, 16, optimizer) == sum(whole.values())
    assert memory_needed(101, 16, optimizer, 3) == sum(whole.values()) // 101 * 34
    monkeypatch.setattr(tasks, "free_memory", lambda device: 2 * memory_needed(56, 16) - 1)
    with pytest.raises(UserError, match="56 classes x embedding_size=16 over 1 processes.*use more processes"):
        train(settings(folder, tmp_path), Ranks(0, 1, CPU))
    monkeypatch.setattr(tasks, "free_memory", lambda device: 2 * memory_needed(56, 16))
    train(settings(folder, tmp_path, "max_steps=1"), Ranks(0, 1, CPU))


def two_runs(rank, world, folder, output):
    """The first ends with an error on every rank, the second takes longer than a look of the watchdog."""
    def slow_or_failing(self, step, factor):
        if "first" in self.cfg.output:
            raise UserError("gone")
        time.sleep(0.05)
        return begin_step(self, step, factor)
    begin_step, tasks.RegistrationTask.begin_step = tasks.RegistrationTask.begin_step, slow_or_failing
    ranks = Ranks(rank, world, CPU, dist.FileStore(f"{output}/words", world))
    with pytest.raises(UserError, match="gone"):
        train(settings(folder, f"{output}/first"), ranks)
    watchdog.Watchdog.__init__.__defaults__ = (0.05,)
    train(settings(folder, f"{output}/second"), ranks)


def test_the_reason_of_one_run_does_not_end_the_next(folder, tmp_path):
    run_ranks(2, two_runs, folder, tmp_path)
    assert rows(tmp_path / "second", "step") == list(range(1, 9))
