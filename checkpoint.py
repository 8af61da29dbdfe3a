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

from runtime import UserError, first_line, rank_and_world

FORMAT = 1


def save_checkpoint(folder: Path, network: dict, optimizer, partial_fc, manifest: dict) -> None:
    """Write `folder`; should that break off, the one before lies there or beside it as `.NAME.old` (see
    `newest_checkpoint`). Every rank of the group calls it, each with its own `partial_fc`.

    network: the network's state dict. manifest: JSON values; the step is `manifest["step"]`.
    """
    (rank, _), folder = rank_and_world(), Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier()
    classes = partial_fc.classes
    save_file(_contiguous(partial_fc.row_state()), partial / f"centres-{classes.start}-{classes.stop}.safetensors")
    if rank == 0:
        save_file(_contiguous(network), partial / "network.safetensors")
        states = optimizer.state_dict()["state"]
        save_file({f"{number}.{name}": value for number, state in states.items()
                   for name, value in _contiguous(state).items()}, partial / "optimizer.safetensors")
        (partial / "manifest.json").write_text(
            json.dumps({"format": FORMAT, "updates": int(partial_fc.updates), **manifest}, indent=2) + "\n")
    _barrier()
    if rank == 0:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _barrier()


def newest_checkpoint(folder: Path) -> Path | None:
    """`folder`, or the one before it when a save broke off between two renames, or None."""
    candidates = Path(folder), Path(folder).with_name(f".{Path(folder).name}.old")
    return next((candidate for candidate in candidates if (candidate / "manifest.json").exists()), None)


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


def load_checkpoint(folder: Path, manifest: dict, network, optimizer, partial_fc) -> None:
    """Fill network, optimiser and this rank's rows of the class centres from a checkpoint that `read_manifest` accepted."""
    folder, classes = Path(folder), partial_fc.classes
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
        missing = len(classes)
        for file in folder.glob("centres-*-*.safetensors"):
            first, stop = (int(number) for number in file.stem.split("-")[1:])
            begin, end = max(first, classes.start), min(stop, classes.stop)
            if begin >= end:
                continue
            with safe_open(file, "pt") as rows:
                for name, value in partial_fc.row_state().items():
                    value[begin - classes.start:end - classes.start] = rows.get_slice(name)[begin - first:end - first]
            missing -= end - begin
    except Exception as error:  # safetensors, JSON and shape errors share no base
        raise UserError(f"resume={folder}: damaged ({first_line(error)}); "
                        "give another checkpoint, or resume=false") from None
    if missing:
        raise UserError(f"resume={folder}: damaged ({missing} rows of class centres are missing); "
                        "give another checkpoint, or resume=false")
    partial_fc.updates.fill_(manifest["updates"])
    partial_fc.step = manifest["step"]


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
