"""Checkpoints: a folder of safetensors files and a JSON manifest, no pickle.

    network.safetensors                  weights and buffers
    optimizer.safetensors                state of the network's optimiser, `<parameter number>.<name>`
    centres-START-STOP.safetensors       class rows START .. STOP - 1 and their optimiser state, one file for each rank
    manifest.json                        step, best metric, what the run must agree with

Random numbers need no state: they are functions of the position, which follows from the step.
"""
import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runtime import UserError

FORMAT = 1


def save_checkpoint(folder: Path, network: dict, optimizer, head, manifest: dict) -> None:
    """Write `folder` whole or not at all; every rank of the group calls it, each with its own `head` (PartialFC).

    network: the network's state dict. manifest: JSON values; the step is `manifest["step"]`.
    """
    rank, folder = (dist.get_rank() if dist.is_initialized() else 0), Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier()
    save_file(_contiguous(head.row_state()), partial / f"centres-{head.classes.start}-{head.classes.stop}.safetensors")
    if rank == 0:
        save_file(_contiguous(network), partial / "network.safetensors")
        states = optimizer.state_dict()["state"]
        save_file({f"{number}.{name}": value for number, state in states.items()
                   for name, value in _contiguous(state).items()}, partial / "optimizer.safetensors")
        (partial / "manifest.json").write_text(
            json.dumps({"format": FORMAT, "updates": head.updates, **manifest}, indent=2) + "\n")
    _barrier()
    if rank == 0:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _barrier()


def read_manifest(folder: Path, must_agree: dict) -> dict:
    """The manifest of a checkpoint. Raises UserError naming the first of `must_agree` that differs from this run's."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"resume={folder}: not a checkpoint ({error}); "
                        "give OUTPUT/checkpoints/last, or resume=false to start anew") from None
    for key, value in {"format": FORMAT, **must_agree}.items():
        if manifest.get(key) != value:
            raise UserError(f"resume={folder}: a checkpoint of another run: its {key} is {manifest.get(key)!r}, here it is "
                            f"{value!r}; use that run's config, another output, or resume=false")
    return manifest


def load_checkpoint(folder: Path, manifest: dict, network, optimizer, head) -> None:
    """Fill network, optimiser and this rank's rows of the head from a checkpoint that `read_manifest` accepted."""
    folder, device = Path(folder), head.weight.device
    try:
        network.load_state_dict(load_file(folder / "network.safetensors"))
        states: dict = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            number, name = key.split(".", 1)
            states.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, state in optimizer.state.items():  # in the parameter's memory format: fused kernels assume it
            state.update({name: torch.empty_like(parameter).copy_(value) for name, value in state.items()
                          if value.shape == parameter.shape})
        missing = len(head.classes)
        for file in folder.glob("centres-*-*.safetensors"):
            first, stop = (int(number) for number in file.stem.split("-")[1:])
            begin, end = max(first, head.classes.start), min(stop, head.classes.stop)
            if begin >= end:
                continue
            with safe_open(file, "pt", device=str(device)) as rows:
                for name, value in head.row_state().items():
                    value[begin - head.classes.start:end - head.classes.start] = rows.get_slice(name)[begin - first:end - first]
            missing -= end - begin
    except Exception as error:  # safetensors, JSON and shape errors share no base
        raise UserError(f"resume={folder}: damaged ({str(error).splitlines()[0][:160]}); "
                        "give another checkpoint, or resume=false") from None
    if missing:
        raise UserError(f"resume={folder}: damaged ({missing} rows of class centres are missing); "
                        "give another checkpoint, or resume=false")
    head.updates, head.step = manifest["updates"], manifest["step"]


def save_weights(network: dict, file: Path) -> None:
    """Write a state dict as `model.pt`, whole or not at all."""
    partial = file.with_name("." + file.name)
    torch.save({name: value.cpu() for name, value in network.items()}, partial)
    partial.replace(file)


def _contiguous(state: dict) -> dict:
    return {name: value.detach().contiguous() for name, value in state.items()}


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
