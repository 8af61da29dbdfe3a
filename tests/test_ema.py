"""The moving average of the weights: its values, what it excludes; that it is evaluated, published and resumed."""
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backbones import get_model
from configs import load_config
from engine.distributed import Ranks
from engine.ema import Ema
from engine.schedules import ema_decay
from inference.errors import UserError
from tasks import Evaluation, images
from tasks.registration import RegistrationTask
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, Stopped, centers, losses_of, same, settings, stop_and_resume, stop_at, train_until
from train_v2 import Run, train

EMA = "ema=0.5"  # reached at the tenth of the steps: the start and what comes after are both seen
WITH_BATCHNORM = "network=test_efficientnet", "norm=lbn"


def saved(output, name, step="last"):
    return load_file(output / f"checkpoints/{step}/{name}.safetensors")


def test_the_decay_grows_to_what_is_asked_for():
    assert [ema_decay(step, 0.5) for step in (0, 1, 5, 8, 9, 10_000)] == [1 / 10, 2 / 11, 6 / 15, 0.5, 0.5, 0.5]


def test_it_is_the_plain_recurrence_and_a_skipped_step_is_none_of_it(folder, tmp_path, monkeypatch):
    """Against float64, from what every step of a run with BatchNorm left behind; the loss of step 4 is not finite."""
    start, states = [], []
    began, finished = RegistrationTask.begin_step, RegistrationTask.finish_step

    def begin_step(self, step, factor):
        if step == 0:
            start.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return began(self, step, factor)

    def finish_step(self, skip):
        finished(self, skip)
        states.append((bool(skip), {name: value.clone() for name, value in self.model.state_dict().items()}))
    monkeypatch.setattr(RegistrationTask, "begin_step", begin_step)
    monkeypatch.setattr(RegistrationTask, "finish_step", finish_step)
    stop_at(monkeypatch, 4, lambda value: {"nan": sum(value.values()) * torch.nan})
    train(settings(folder, tmp_path, EMA, "max_steps=12", *WITH_BATCHNORM), Ranks(0, 1, CPU))

    assert [skipped for skipped, _ in states] == [step == 4 for step in range(12)]
    expected = {name: value.double() for name, value in start[0].items()}
    for step, (skipped, now) in enumerate(states):
        decay = min(0.5, (1 + step) / (10 + step))
        for name in expected if not skipped else ():
            expected[name] = decay * expected[name] + (1 - decay) * now[name].double()
    average, network = saved(tmp_path, "average"), saved(tmp_path, "network")
    assert average.keys() == network.keys() == expected.keys()
    for name, value in average.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-7), name
            assert value.dtype == torch.float32
        else:
            assert torch.equal(value, network[name]), name
    moved = [name for name in average if not torch.equal(average[name], network[name])]
    assert any("running_var" in name for name in moved) and any("weight" in name for name in moved)


def test_the_network_itself_is_left_alone(folder, tmp_path):
    for name, more in (("without", ()), ("with", (EMA,))):
        train(settings(folder, tmp_path / name, *WITH_BATCHNORM, *more), Ranks(0, 1, CPU))
    assert losses_of(tmp_path / "without") == losses_of(tmp_path / "with")
    assert same(saved(tmp_path / "without", "network"), saved(tmp_path / "with", "network"))
    assert not (tmp_path / "without/checkpoints/last/average.safetensors").exists()


def test_it_is_what_is_evaluated_and_published(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_images", lambda folder: None)
    seen = []

    def evaluate(self):
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
        seen.append((self.outputs(pixels), self.model.training))
        return Evaluation({"auroc": 0.5}, "auroc")
    monkeypatch.setattr(RegistrationTask, "evaluate", evaluate)
    cfg = settings(folder, tmp_path, EMA, "eval_data=there", *WITH_BATCHNORM)
    train(cfg, Ranks(0, 1, CPU))
    average = saved(tmp_path, "average")
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), average)
    network = get_model(cfg, False)
    network.load_state_dict(average)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network.eval()(pixels.float() / 255)
    (embeddings, was_training), = seen
    assert was_training and np.allclose(embeddings, expected, atol=1e-5)


def test_a_resumed_run_has_the_same_average(folder, tmp_path):
    more = ["save_every=3", EMA]
    stop_and_resume(5, lambda output, *keys: settings(folder, output, *more, *keys), tmp_path, states=("network", "average"))


def part_of_a_run(rank, world, folder, output, steps):
    """The run of eight steps, which a signal would stop after `steps`, so that its rates are those of the whole."""
    torch.set_default_dtype(torch.float64)
    cfg = settings(folder, output, "resume=auto", "save_every=4", EMA)
    losses = RegistrationTask.losses

    def stop(self, batch):
        if self.partial_fc.step == steps:
            raise Stopped
        return losses(self, batch)
    RegistrationTask.losses = stop
    try:
        train(cfg, Ranks(rank, world, CPU))
    except Stopped:
        pass


def test_other_numbers_of_ranks_go_on_with_it(folder, tmp_path):
    run_ranks(1, part_of_a_run, folder, tmp_path / "whole", 8)
    run_ranks(3, part_of_a_run, folder, tmp_path / "parts", 6)
    run_ranks(2, part_of_a_run, folder, tmp_path / "parts", 8)
    whole, parts = (saved(tmp_path / name, "average") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert (value - parts[name]).norm() <= 1e-9 * value.norm(), name
    assert (centers(tmp_path / "parts") - centers(tmp_path / "whole")).norm() <= 1e-9 * centers(tmp_path / "whole").norm()


def test_switched_on_or_off_between_two_parts_of_a_run(folder, tmp_path):
    """On: the average begins as the network of the checkpoint. Off: nothing asks for it any more."""
    train(settings(folder, tmp_path, "max_steps=2", "save_every=2"), Ranks(0, 1, CPU))
    run = Run(settings(folder, tmp_path, EMA, "resume=auto"), Ranks(0, 1, CPU), None)
    assert same(run.ema.state_dict(), saved(tmp_path, "network"))
    train(settings(folder, tmp_path, "max_steps=4", "resume=auto", EMA), Ranks(0, 1, CPU))
    assert not same(saved(tmp_path, "average"), saved(tmp_path, "network"))
    train(settings(folder, tmp_path, "max_steps=5", "resume=auto"), Ranks(0, 1, CPU))
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), saved(tmp_path, "network"))


def test_swa_is_the_plain_mean_of_the_last_steps(folder, tmp_path, monkeypatch):
    """Of 12 steps the last half, in float64; it is what is published, and the same after a resume."""
    states, finished = [], RegistrationTask.finish_step

    def finish_step(self, skip):
        finished(self, skip)
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
    monkeypatch.setattr(RegistrationTask, "finish_step", finish_step)
    more = ["swa=0.5", "max_steps=12", *WITH_BATCHNORM]
    train(settings(folder, tmp_path / "whole", *more), Ranks(0, 1, CPU))
    for name, value in torch.load(tmp_path / "whole/model.pt", weights_only=True).items():
        if value.is_floating_point():
            expected = sum(state[name].double() for state in states[6:]) / 6
            assert (value - expected).norm() <= 1e-6 * expected.norm() + 1e-12, name
    train_until(8, settings(folder, tmp_path / "parts", *more, "save_every=2"), monkeypatch, RegistrationTask)
    train(settings(folder, tmp_path / "parts", *more, "save_every=2", "resume=auto"), Ranks(0, 1, CPU))
    assert same(saved(tmp_path / "parts", "average"), saved(tmp_path / "whole", "average"))


def test_two_averages_are_refused():
    with pytest.raises(UserError, match="ema=0.9, swa=0.2: two averages"):
        load_config("lcnet_strong", ["ema=0.9", "swa=0.2"])


def test_a_damaged_average_is_named(folder, tmp_path):
    train(settings(folder, tmp_path, "max_steps=2", EMA), Ranks(0, 1, CPU))
    file = tmp_path / "checkpoints/last/average.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged .average.safetensors"):
        train(settings(folder, tmp_path, f"resume={tmp_path}/checkpoints/last", EMA), Ranks(0, 1, CPU))


@pytest.mark.parametrize("value", ["1", "-0.1", "1.5"])
def test_a_decay_that_cannot_be_is_refused(value):
    with pytest.raises(UserError, match=f"ema={float(value)}: must be 0 or more and below 1"):
        load_config("lcnet_strong", [f"ema={value}"])


def test_it_follows_the_very_tensors_of_the_model_and_can_be_applied_to_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema, skip = Ema(model, 1.0), torch.tensor(False)  # at step 20 the decay is 21 / 30
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 2))
    now = {name: value.clone() for name, value in model.state_dict().items()}
    ema.update(20, ~skip)
    assert torch.equal(ema.state_dict()["1.running_mean"], before["1.running_mean"])
    ema.update(20, skip)
    averages = {name: value.clone() for name, value in ema.state_dict().items()}
    assert torch.allclose(averages["1.running_mean"], 0.3 * now["1.running_mean"])
    assert averages["1.num_batches_tracked"] == 1 and averages.keys() == now.keys()
    with pytest.raises(ZeroDivisionError), ema.applied():
        assert same(model.state_dict(), averages)
        raise ZeroDivisionError
    assert same(model.state_dict(), now) and all(p.requires_grad for p in model.parameters())
    assert same(ema.state_dict(), averages)
