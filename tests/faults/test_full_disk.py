"""A disk that is full, from the start or later: a small tmpfs, where this process is allowed to mount one."""
import time

import pytest

from engine.checkpoint import damage
from engine.distributed import Ranks
from engine.progress import checkpoint_steps
from inference.errors import UserError
from tasks import registration as tasks
from tests.faults.kills import board_steps
from tests.helpers.disks import fill, small_disk
from tests.helpers.runs import CPU, rows, settings
from train_v2 import train


@pytest.fixture
def disk(tmp_path):
    """A folder on a separate disk of 24 MB."""
    with small_disk(tmp_path / "disk", 24) as place:
        yield place


def test_full_for_a_while(folder, disk, monkeypatch, capfd):
    losses = tasks.RegistrationTask.losses

    def filling(self, batch):
        if self.partial_fc.step == 4:
            fill(disk)
        if self.partial_fc.step == 40:
            (disk / "filler").unlink()
        return losses(self, batch)
    monkeypatch.setattr(tasks.RegistrationTask, "losses", filling)
    train(settings(folder, disk / "run", "max_steps=60", "save_every=10"), Ranks(0, 1, CPU))
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("checkpoint of step 20 not written ([Errno 28] No space left on device); the run continues") == 1
    assert said.count("results.csv, TensorBoard: cannot be written at step") == 1
    assert rows(disk / "run", "step") == board_steps(disk / "run") == list(range(1, 61))
    assert checkpoint_steps(disk / "run/checkpoints")[-1] == 60 and damage(disk / "run/checkpoints/step-60") is None


def test_full_to_the_end(folder, disk, monkeypatch, capfd):
    losses = tasks.RegistrationTask.losses

    def filling(self, batch):
        if self.partial_fc.step == 14:
            while checkpoint_steps(disk / "run/checkpoints") != [10]:  # until the first checkpoint is written
                time.sleep(0.01)
            fill(disk)
        return losses(self, batch)
    monkeypatch.setattr(tasks.RegistrationTask, "losses", filling)
    train(settings(folder, disk / "run", "max_steps=30", "save_every=10"), Ranks(0, 1, CPU))
    said = capfd.readouterr().err
    assert "Traceback" not in said and "its newest checkpoint is that of step 10" in said
    assert damage(disk / "run/checkpoints/step-10") is None
    # With free space again, the run resumes from there.
    (disk / "filler").unlink()
    monkeypatch.setattr(tasks.RegistrationTask, "losses", losses)
    train(settings(folder, disk / "run", "max_steps=30", "save_every=10", "resume=auto"), Ranks(0, 1, CPU))
    assert rows(disk / "run", "step") == board_steps(disk / "run") == list(range(1, 31))


def test_full_from_the_start(folder, disk):
    fill(disk)
    with pytest.raises(UserError, match="run: cannot be written .No space left on device"):
        train(settings(folder, disk / "run"), Ranks(0, 1, CPU))
