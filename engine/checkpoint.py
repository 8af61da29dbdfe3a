"""Checkpoints: folders of safetensors files with a JSON manifest, no pickle, written while the run continues.

    step-N/NAME.safetensors                replicated state, the same on all ranks: network, average (EMA), optimizer
    step-N/NAME-START-STOP.safetensors     sharded state, a file for each rank: rows START .. STOP - 1 of class centers
    step-N/manifest.json                   step, counters, best metric, compatibility keys; size and CRC-32 of each file
    last, best                             links to two of them, for people; nothing here depends on them

Nothing here knows what the tensors mean. Random numbers need no state: they are functions of the position, which follows
from the step. Any number of ranks can resume: each reads the rows it needs. What is not whole yet lies in a folder whose
name begins with a dot.
"""
import contextlib
import json
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file

from engine.distributed import all_reduce_max, rank_and_world
from engine.progress import checkpoint_steps
from inference.errors import UserError, first_line
from inference.files import replacing

FORMAT = 2
EARLIER = {"sampler": "permutation", "fit": "squash", "layout": 0}  # what checkpoints without these keys were made with
PATIENCE = 600      # seconds that rank 0 waits for the files of the others
LAST_PATIENCE = 5   # the same when the run ends with an error, which the others may not have survived
CHUNK = 1 << 24     # bytes written, or read, at a time
UNFINISHED = ".step-*", ".last.*", ".best.*", ".seen.*"
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
          torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
log = logging.getLogger("docmetric")


class Checkpoints:
    """Writes the checkpoints of a run into `folder` and keeps the last `keep` and the best; every rank holds one.

        with Checkpoints(folder, keep) as checkpoints:      # the end waits until all is written
            checkpoints.save(...)                           # at the same steps on every rank

    `save` returns when everything is copied into host buffers, which stay (pinned, and filled while the host continues,
    where the state is on a GPU); a thread writes them. What goes wrong there is a warning, and the run continues. The
    threads use no collectives: each rank's puts its files, and then word of them, into one folder that all must see, and
    rank 0's waits for all words, writes the manifest and gives the folder its name.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep, self.saved_at = Path(folder), keep, time.monotonic()
        self.rank, self.world = rank_and_world()
        self._buffers, self._thread, self._give_up = {}, None, float("inf")
        self._attempt = _from_rank_0(f"{time.time_ns():x}")  # so that nothing an earlier run left is taken for ours
        seen = self.folder / f".seen.{self._attempt}"
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for kind in UNFINISHED:  # what an earlier run was writing or removing when it was killed
                for left in self.folder.glob(kind):
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() and not left.is_symlink() else left.unlink()
            seen.touch()
        all_reduce_max(0)  # all wait here
        blind = all_reduce_max(0 if seen.exists() else self.rank)
        if blind:
            raise UserError(f"output: rank {blind} does not see {self.folder}; give a folder that every machine sees")
        if self.rank == 0:
            seen.unlink()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self._give_up = time.monotonic() + LAST_PATIENCE
        self.wait()

    def save(self, step: int, replicated: dict[str, dict], sharded: dict[str, tuple[range, dict]], counters: dict,
             manifest: dict, then: Callable[[dict], None] | None = None) -> None:
        """Begin to write step-N. Waits for the save before, and for the copies.

        replicated: {name: {tensor's name: tensor}}, written by rank 0. sharded: {name: (ids of this rank's rows, {tensor's
        name: tensor [rows, ...]})}. counters: {name: tensor}, small ones for the manifest. manifest: JSON values,
        among them `best_step`. then(replicated): what rank 0's thread calls when the checkpoint is there, with the copies.
        """
        self.wait()
        files = {f"{name}-{rows.start}-{rows.stop}.safetensors": tensors for name, (rows, tensors) in sharded.items()}
        if self.rank == 0:
            files.update({f"{name}.safetensors": tensors for name, tensors in replicated.items()})
        on_gpu = any(value.is_cuda for tensors in files.values() for value in tensors.values())
        files = {file: {name: self._copied((file, name), value) for name, value in tensors.items()}
                 for file, tensors in files.items()}
        counters = {name: self._copied(name, value) for name, value in counters.items()}
        copied = None
        if on_gpu:  # the copies are in the stream's order, so before the next step changes anything
            copied = torch.cuda.Event()
            copied.record()

        def work():
            partial = self.folder / f".step-{step}.{self._attempt}"
            part = self._write(partial, files, copied)
            if self.rank:
                return
            what = f"checkpoint of step {step}"
            try:
                numbers = {name: value.tolist() for name, value in counters.items()}
                self._finish(partial, step, part, {"format": FORMAT, "step": step, **numbers, **manifest})
                if then:
                    what = "what goes with it"
                    then({name: files[f"{name}.safetensors"] for name in replicated})
            except Exception as error:  # of the disk, mostly; none of them is worth the run
                written = checkpoint_steps(self.folder)
                newest = f"its newest checkpoint is that of step {written[-1]}" if written else "without a checkpoint so far"
                log.warning(f"{what} not written ({first_line(error)}); the run continues, {newest}")
                shutil.rmtree(partial, ignore_errors=True)

        self._thread = threading.Thread(target=work, name=f"checkpoint {step}", daemon=True)
        self._thread.start()
        self.saved_at = time.monotonic()

    def due(self, minutes: float) -> bool:
        """Whether the last save began as many minutes ago; never for 0."""
        return 0 < minutes <= (time.monotonic() - self.saved_at) / 60

    def wait(self) -> None:
        """Return when this rank has written what it began, and rank 0 when the checkpoint is there."""
        if self._thread:
            self._thread.join()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is on its way to the disk."""
        return self._thread is not None and self._thread.is_alive()

    def _copied(self, key, value: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = self._buffers[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return buffer.copy_(value.detach(), non_blocking=True)

    def _write(self, partial: Path, files: dict, copied) -> dict:
        """This rank's files; returns, and leaves for rank 0, word of them: {"files": {name: size and checksum}, "error"}."""
        part = {"files": {}, "error": None}
        try:
            if copied:
                copied.synchronize()
            partial.mkdir(parents=True, exist_ok=True)
            for name, tensors in files.items():
                part["files"][name] = write_file(partial / name, tensors)
        except Exception as error:
            part["error"] = f"rank {self.rank}: {first_line(error)}" if self.world > 1 else first_line(error)
            for name in files:  # on a full disk there is then room for the word
                with contextlib.suppress(OSError):
                    (partial / name).unlink()
        if self.rank:
            with contextlib.suppress(OSError):  # rank 0 then hears nothing, and says so
                word = partial / f"rank-{self.rank}"
                word.write_text(json.dumps(part))
                word.rename(word.with_suffix(".json"))
        return part

    def _finish(self, partial: Path, step: int, part: dict, manifest: dict) -> None:
        """All ranks' files become step-N. Raises OSError when some rank could not write."""
        parts, deadline = [part], time.monotonic() + PATIENCE
        for rank in range(1, self.world):
            word = partial / f"rank-{rank}.json"
            while not word.exists():
                if time.monotonic() > min(deadline, self._give_up):
                    raise OSError(f"rank {rank} has not written its part; does its machine still see {self.folder}?")
                time.sleep(0.02)
            parts.append(json.loads(word.read_text()))
            word.unlink()
        for error in filter(None, (part["error"] for part in parts)):
            raise OSError(error)
        write_manifest(partial, {**manifest, "files": {name: of for part in parts for name, of in part["files"].items()}})
        partial.rename(self.folder / f"step-{step}")
        _sync(self.folder)
        self._link("last", step)
        if manifest["best_step"] == step:
            self._link("best", step)
        keep = {*checkpoint_steps(self.folder)[-self.keep:], manifest["best_step"]}
        for old in set(checkpoint_steps(self.folder)) - keep:
            folder, gone = self.folder / f"step-{old}", self.folder / f".step-{old}.{self._attempt}.gone"
            if folder.name != os.path.basename(os.path.realpath(self.folder / "best")):  # a better one may not be written
                folder.rename(gone)  # at once: a half removed one would look damaged
                shutil.rmtree(gone, ignore_errors=True)

    def _link(self, name: str, step: int) -> None:
        with contextlib.suppress(OSError):  # not every system or disk has links
            link = self.folder / f".{name}.{self._attempt}"
            link.symlink_to(f"step-{step}", target_is_directory=True)
            link.replace(self.folder / name)


def find(how: str, folder: Path) -> Path | None:
    """The checkpoint that the config's `resume` asks for: "false": none; a checkpoint; or "auto": the newest whole one in
    `folder`. Every rank of the group calls it, and all get the same. Raises UserError for a damaged one that was named."""
    if how == "false":
        return None
    if how == "auto":
        return newest_whole(folder)
    read_manifest(Path(how), {})  # what is no checkpoint at all is said first
    if reason := damage(Path(how)):
        raise _damaged(Path(how), reason)
    return Path(how)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` whose files are what its manifest says; None without one. Damaged ones are named
    in a warning. Every rank of the group calls it, and all get the same."""
    for step in reversed(_from_rank_0(checkpoint_steps(folder))):
        checkpoint = Path(folder) / f"step-{step}"
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        if rank_and_world()[0] == 0:
            log.warning(f"resume=auto: {checkpoint} is damaged ({reason}); trying the one before")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by sizes and checksums; the ranks of the group share the work and the answer."""
    rank, world = rank_and_world()
    reason = _damage(Path(folder), rank, world)
    if world > 1:
        reasons = [None] * world
        dist.all_gather_object(reasons, reason)
        reason = next(filter(None, reasons), None)
    return reason


def read_manifest(folder: Path, compatibility_keys: dict) -> dict:
    """The manifest of a checkpoint. Raises UserError naming the first of this run's `compatibility_keys` that differs."""
    try:
        manifest = _manifest_of(Path(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"resume={folder}: not a checkpoint ({first_line(error)}); "
                        "give OUTPUT/checkpoints/last, or resume=false to start anew") from None
    for key, value in {"format": FORMAT, **compatibility_keys}.items():
        if manifest.get(key, EARLIER.get(key)) != value:
            raise UserError(f"resume={folder}: a checkpoint of another run: its {key} is {manifest.get(key)!r}, here it is "
                            f"{value!r}; use that run's config, another output, or resume=false")
    return manifest


def load(folder: Path, manifest: dict, sharded: dict[str, tuple[range, dict]]) -> dict[str, dict[str, torch.Tensor]]:
    """Read a checkpoint that `read_manifest` accepted: fills this rank's rows of the sharded tensors, which are given as to
    `Checkpoints.save`, in place, and returns the replicated ones. Raises UserError where it is damaged."""
    folder, replicated = Path(folder), {}
    missing = {name: len(rows) for name, (rows, _) in sharded.items()}
    try:
        for file in map(Path, manifest["files"]):
            name, *of = file.stem.rsplit("-", 2)
            if not of:
                replicated[name] = load_file(folder / file)
                continue
            wanted, tensors = sharded[name]
            first, stop = map(int, of)
            begin, end = max(first, wanted.start), min(stop, wanted.stop)
            if begin >= end:
                continue
            with safe_open(folder / file, "pt") as rows:
                for key, value in tensors.items():
                    value[begin - wanted.start:end - wanted.start] = rows.get_slice(key)[begin - first:end - first]
            missing[name] -= end - begin
    except Exception as error:  # safetensors, JSON and shape errors share no base
        raise _damaged(folder, first_line(error)) from None
    for name, count in missing.items():
        if count:
            raise _damaged(folder, f"{count} rows of {name} are missing")
    return replicated


def save_weights(state: dict[str, torch.Tensor], file: Path) -> None:
    """Write a state dict as `model.pt`, whole or not at all."""
    with replacing(file) as partial:
        torch.save({name: value.cpu() for name, value in state.items()}, partial)


def write_file(file: Path, tensors: dict[str, torch.Tensor]) -> dict:
    """Write contiguous host tensors as a safetensors file and return its {"bytes", "crc32"}. Raises OSError.

    Not by safetensors' own writer: this one gives the checksum of what was meant, reports a full disk as an OSError in
    every version, and lets the run continue meanwhile: it holds Python's lock only for moments.
    """
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))  # so that each lies aligned
    header, at = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    crc = size = 0
    with open(file, "wb", buffering=0) as out:
        for data in (len(text).to_bytes(8, "little") + text,
                     *(value.reshape(-1).view(torch.uint8).numpy().data for value in tensors.values() if value.nbytes)):
            size += len(data)
            for first in range(0, len(data), CHUNK):
                chunk = memoryview(data)[first:first + CHUNK]
                crc = zlib.crc32(chunk, crc)
                while len(chunk):  # a disk about to be full takes less than it is given
                    chunk = chunk[out.write(chunk):]
        os.fsync(out.fileno())
    return {"bytes": size, "crc32": f"{crc:08x}"}


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write `folder/manifest.json` with its own checksum, and see both to the disk. Raises OSError."""
    with open(folder / "manifest.json", "w") as out:
        out.write(json.dumps({**manifest, "crc32": _crc_of(manifest)}, indent=2) + "\n")
        out.flush()
        os.fsync(out.fileno())
    _sync(folder)


def _crc_of(manifest: dict) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def _manifest_of(folder: Path) -> dict:
    """The manifest as it was written. Raises OSError and, where that cannot be, ValueError."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if (manifest.pop("crc32") == _crc_of(manifest) and type(manifest["step"]) is int
                and all(Path(name).name == name and {"bytes", "crc32"} <= of.keys()
                        for name, of in manifest["files"].items())):
            return manifest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # of JSON of any other form
        pass
    raise ValueError("manifest.json: not what was written")


def _damage(folder: Path, part: int, parts: int) -> str | None:
    """What is wrong with the manifest, or with this part of the files."""
    try:
        files = sorted(_manifest_of(folder)["files"].items())[part::parts]
    except OSError as error:
        return f"manifest.json: {error.strerror}"
    except ValueError as error:
        return str(error)
    for name, written in files:
        try:
            with open(folder / name, "rb", buffering=0) as file:
                size, crc, chunk = os.fstat(file.fileno()).st_size, 0, bytearray(CHUNK)
                if size != written["bytes"]:
                    return f"{name}: {size} of {written['bytes']} bytes"
                while count := file.readinto(chunk):
                    crc = zlib.crc32(memoryview(chunk)[:count], crc)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if f"{crc:08x}" != written["crc32"]:
            return f"{name}: not what was written"
    return None


@contextlib.contextmanager
def damage_named(folder: Path):
    """`with damage_named(folder):` what does not fit where it is loaded is a damaged checkpoint, by a UserError."""
    try:
        yield
    except Exception as error:  # of modules and optimizers of all kinds
        raise _damaged(folder, first_line(error)) from None


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"resume={folder}: damaged ({reason}); give another checkpoint, or resume=auto or false")


def _sync(folder: Path) -> None:
    """See a folder's entries to the disk; where folders cannot be opened (Windows) that is the system's business."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _from_rank_0(value):
    """Rank 0's `value`, on every rank."""
    said = [value]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(said, src=0)
    return said[0]
