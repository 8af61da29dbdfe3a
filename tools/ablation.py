"""What each part of a recipe is worth: the reference's comparisons and ours, at a scale that this machine can bear.

    python benchmarks/ablation.py OUT --data scans,posters --made synth/train --eval held_out --eval synth/eval
    python benchmarks/ablation.py OUT --data scans --eval held_out --rows reference,ours,arcface --samples 30000
    python benchmarks/ablation.py OUT --data scans --eval held_out --same-time 30      # reference against ours

A row is a run of train_v2.py, from scratch, over the same images and the same number of samples, judged by `python -m eval`
on every --eval folder (of types that are in none of --data). It differs from another row in what its name says, and --list
shows that. OUT/NAME is its run, OUT/rows.json what is finished: asked again, the command goes on where it was stopped. At
the end OUT/table.md is written and printed. One seed and a short budget: `seed-1` and `seed-2` tell what is noise.
--same-time gives two rows the same time instead: the steps follow from a short measurement of the speed of each.
"""
import csv
import difflib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import side_by_side
from side_by_side import UserError, run_cli

from backbones import get_model
from configs import load_config, read_config
from dataset import list_roots, parse_root
from engine.signals import StopSignals
from eval.folder import find_images
from inference.cli import Parser
from inference.errors import printable
from inference.image import available_cores
from synth import write_eval, write_train

ROOT = Path(__file__).resolve().parent.parent
# The one place where the recipes' rates are fitted to a short budget, in ours alone: some hundred steps are far from
# convergence. There a low scale and a small margin learn fastest (at s = 64 nearly all of the softmax lies on one wrong
# class while the cosines mean nothing yet), small batches make more steps of the samples, and the network bears a higher
# rate. One class an image: 24 need 24 times the samples. The reference keeps what it published but for that.
SHORT = {"expansion": 1, "batch_size": 128, "lr": 1e-2, "s": 16.0, "m": 0.2}
FPRS = "1e-2", "1e-4"  # what is printed; the second is the reference's measure, the first says more of short runs
MEASURED = 12_288  # samples that a speed is measured over, the first quarter left out
QUICK = {"image_size": 32, "network": "test_efficientnet", "embedding_size": 16, "batch_size": 8, "num_workers": 0,
         "log_every": 1}
FILE, DATA = "--pretrained", "--data without --made"  # stand for what the command line gives


@dataclass(frozen=True)
class Row:
    """One run: the config `base`, or the row of that name, with `changes`. reference: the row of the reference's table which
    shows the same part at work, its architecture the very one or not."""
    name: str
    base: str
    changes: dict
    reference: str = ""


SGD = {"centres_optimizer": "sgd", "centres_lr": 0.1, "centres_weight_decay": 0.0, "sample_rate": 1.0}
ADAMW = {"centres_optimizer": "adamw", "centres_lr": 1e-3, "centres_weight_decay": 1e-3}
ROWS = {row.name: row for row in (
    Row("reference", "configs/lcnet_cos", {"expansion": 1}),
    Row("ours", "configs/lcnet_strong", SHORT, "LBN squeeze"),
    # from the reference's recipe to ours, a part at a time; what is then left is SHORT
    Row("reference-strong", "reference", {"augment": "strong"}),
    Row("reference-lbn", "reference-strong", {"head": "squeeze", "norm": "lbn"}),
    Row("reference-sgd", "reference-lbn", SGD),
    Row("reference-warmup", "reference-sgd", {"margin_warmup": 0.4}),
    Row("reference-128", "reference", {"batch_size": 128}),  # more steps: the published batch is for longer runs
    # ours, with one part put back
    Row("reference-augment", "ours", {"augment": "reference"}),
    Row("centres-adamw", "ours", ADAMW),
    Row("fixed-margin", "ours", {"margin_warmup": 0.0}),
    # the comparisons of the reference's table, each on ours: its architecture, `ln-cos`, hardly learns in a short run
    Row("ln-cos", "ours", {"head": "flatten", "norm": "ln"}, "ln-cos"),
    Row("arcface", "ours", {"margin": "arcface"}, "ln-arc"),
    Row("softmax", "ours", {"margin": "softmax", "m": 0.0}, "ln-softmax"),
    Row("ln", "ours", {"norm": "ln"}, "ln-cos-squeeze"),
    Row("bn", "ours", {"norm": "bn"}, "bn-cos"),
    Row("flatten", "ours", {"head": "flatten"}),
    Row("gap", "ours", {"head": "gap"}, "ln-cos-gap"),
    Row("f128-r96", "ours", {"embedding_size": 128, "image_size": 96}, "f128-r96-ln-cos"),
    Row("lcnet_100", "ours", {"network": "lcnet_100"}),
    Row("mobilenetv3", "ours", {"network": "mobilenetv3_small_050"}),
    Row("efficientnet_b0", "ours", {"network": "efficientnet_b0"}, "efficientnet_b0-ln-cos"),
    Row("x8", "ours", {"expansion": 8}),
    Row("x24", "ours", {"expansion": 24}),
    Row("pretrained", "ours", {"pretrained": FILE}),
    # ours, with one number changed
    Row("ema", "ours", {"ema": 0.999}),
    Row("batch-64", "ours", {"batch_size": 64}),
    Row("batch-256", "ours", {"batch_size": 256}),
    Row("lr-3e-3", "ours", {"lr": 3e-3}),
    Row("lr-3e-2", "ours", {"lr": 3e-2}),
    Row("centres-lr-0.03", "ours", {"centres_lr": 0.03}),
    Row("centres-lr-0.3", "ours", {"centres_lr": 0.3}),
    Row("s-32", "ours", {"s": 32.0}),
    Row("s-64", "ours", {"s": 64.0}),
    Row("m-0", "ours", {"m": 0.0}),
    Row("m-0.4", "ours", {"m": 0.4}),
    Row("cosine", "ours", {"schedule": "cosine"}),
    Row("no-made", "ours", {"data": DATA}),
    Row("seed-1", "ours", {"seed": 1}),
    Row("seed-2", "ours", {"seed": 2}),
)}


class Job(NamedTuple):
    """A row to run over so many samples. key: its name in rows.json, and its folder's."""
    key: str
    row: str
    samples: int


class Stopped(Exception):
    """A signal asked for the end."""


def settings(name: str, common: dict, given: dict) -> tuple[str, dict]:
    """(config, what is changed in it) of a row. common: what is changed in all of them; given: {FILE: ..., DATA: ...}."""
    row = ROWS[name]
    changes = {key: given.get(value, value) if isinstance(value, str) else value for key, value in row.changes.items()}
    if row.base not in ROWS:
        return row.base, {**changes, **common}
    config, inherited = settings(row.base, common, given)
    return config, {**inherited, **changes}


def overrides(changes: dict) -> list[str]:
    """`key=value` as train_v2.py takes them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


class Ablation:
    """Runs, judges and remembers the rows under the folder `out`. common, given: see `settings`; evals: what judges them."""

    def __init__(self, out: Path, common: dict, given: dict, evals: list[str]):
        self.out, self.common, self.given, self.evals = out, common, given, evals
        self.file, self.signals = out / "rows.json", StopSignals()
        self.known = {"rows": {}, "speeds": {}}
        try:
            out.mkdir(parents=True, exist_ok=True)
            if self.file.exists():
                self.known = json.loads(self.file.read_text())
                if not (all(row.keys() >= {"asked", "judged"} for row in self.known["rows"].values())
                        and all(isinstance(speed, float) for speed in self.known["speeds"].values())):
                    raise ValueError
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror}); give another OUT") from None
        except (ValueError, TypeError, LookupError, AttributeError):
            raise UserError(f"{self.file}: not what this command wrote; move it away, or give another OUT") from None

    def config_of(self, job: Job) -> tuple[str, dict, dict]:
        """(config, changes, resolved config) of a job. Raises UserError for what cannot be."""
        config, changes = settings(job.row, self.common, self.given)
        changes["max_steps"] = math.ceil(job.samples / load_config(config, overrides(changes)).batch_size)
        return config, changes, load_config(config, overrides(changes))

    def asked(self, job: Job) -> dict:
        """What makes the row this row, as JSON has it."""
        config, changes, _ = self.config_of(job)
        return json.loads(json.dumps({"config": config, "eval": self.evals, **changes}))

    def finished(self, job: Job) -> bool:
        """Whether its row is there. Raises UserError where it is, but of other settings."""
        row = self.known["rows"].get(job.key)
        if row and row["asked"] != (asked := self.asked(job)):
            what = next(key for key in {**row["asked"], **asked} if row["asked"].get(key) != asked.get(key))
            raise UserError(f"{self.file}: row {job.key} is there with {what}={row['asked'].get(what)}, asked for is "
                            f"{asked.get(what)}; give another OUT, or the same settings")
        return bool(row)

    def run_all(self, jobs: list[Job]) -> dict[str, str]:
        """Run those that are not finished; returns {key: why} of those that failed. Raises `Stopped`."""
        todo = [job for job in jobs if not self.finished(job)]  # of all first, so that what cannot be is said at once
        say(f"{len(jobs) - len(todo)} of {len(jobs)} rows are there")
        failed, began = {}, time.monotonic()
        for done, job in enumerate(todo):
            left = (time.monotonic() - began) / done * (len(todo) - done) / 60 if done else None
            say(f"row {done + 1}/{len(todo)} {job.key}: {differs(job.row)}; log: {self.out / job.key / 'training.log'}"
                + (f"; ETA {left:.0f} min" if done else ""))
            try:
                row = self.run(job)
            except UserError as error:  # a run that went astray, say, is no reason to leave out those after it
                failed[job.key] = str(error)
                say(f"  failed: {error}")
                continue
            say(f"  {row['minutes']:.1f} min at {row['images_per_second']:.0f} images/s; " + "; ".join(
                f"{folder} " + ", ".join(f"{what} {value:.4f}" for what, value in of["model"].items())
                for folder, of in row["judged"].items()))
        return failed

    def run(self, job: Job) -> dict:
        """Train, judge and remember one row, which is returned."""
        output = self.out / job.key
        cfg = self.train(job, output)
        speed, minutes = speed_of(output)
        row = {"asked": self.asked(job), "samples": cfg.max_steps * cfg.batch_size,
               "mb": sum(p.numel() for p in get_model(cfg, False).parameters()) * 4 / 1e6,
               "images_per_second": speed, "minutes": minutes, "judged": {}}
        for folder in self.evals:
            said = json.loads(self.call("-m", "eval", "--model", str(output), "--data", folder, "--json"))
            row["judged"][folder] = {"model": judgement(said), "thumbnail": judgement(said["baseline"]),
                                     "negatives": said["pairs"]["negative"]}
        self.known["rows"][job.key] = row
        self.remember()
        return row

    def speed(self, name: str, samples: int) -> float:
        """Images per second of a row's steps, from a run over so many samples; measured once."""
        job = Job(f"speed-{name}", name, samples)
        key = json.dumps([self.asked(job), available_cores()])  # of other data or cores it would be another
        if key not in self.known["speeds"]:
            steps = self.config_of(job)[2].max_steps
            self.train(job, self.out / job.key, {"log_every": max(1, steps // 4)})
            self.known["speeds"][key], _ = speed_of(self.out / job.key, after=samples / 4)
            self.remember()
        return self.known["speeds"][key]

    def train(self, job: Job, output: Path, more: dict | None = None):
        """Run train_v2.py, or let it go on where a run of the same settings was stopped; returns its resolved config."""
        config, changes, _ = self.config_of(job)
        given = overrides({**changes, **(more or {}), "output": str(output)})
        cfg = load_config(config, given)
        earlier = read_config(output) if (output / "config.json").exists() else {}
        same = {**earlier, "resume": ""} == {**cfg, "resume": ""}
        self.call(str(ROOT / "train_v2.py"), config, *given, f"resume={'auto' if same else 'false'}")
        return cfg

    def call(self, *words: str) -> str:
        """stdout of a Python command of this project. Raises UserError with its last words when it fails; `Stopped` when
        a signal came: the command gets it too, and a training saves."""
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**side_by_side.KEPT, **os.environ, "PYTHONPATH": str(ROOT)})
        while process.returncode is None:
            try:
                said, error = process.communicate(timeout=0.5)
            except subprocess.TimeoutExpired:
                if self.signals.seen:
                    process.terminate()
        if self.signals.seen:
            raise Stopped
        if process.returncode:
            raise UserError((error.strip().splitlines() or [f"status {process.returncode}"])[-1].removeprefix("error: "))
        return said

    def remember(self) -> None:
        """Write rows.json."""
        self.write(self.file.name, json.dumps(self.known, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        partial = self.out / f".{name}"
        try:
            partial.write_text(text)
            partial.replace(self.out / name)
        except OSError as error:
            raise UserError(f"{self.out / name}: cannot be written ({error.strerror}); put that right, and give the same "
                            "command again") from None


def judgement(metrics: dict) -> dict:
    """The numbers of a row, by the table's names, of what `python -m eval --json` prints."""
    return {"AUROC": metrics["auroc"], **{tpr_at(fpr): metrics["tpr_at_fpr"][fpr] for fpr in FPRS}, "top-1": metrics["top1"]}


def tpr_at(fpr: str) -> str:
    return f"TPR at {fpr}"


def speed_of(output: Path, after: float = 0) -> tuple[float, float]:
    """(images per second, minutes) of the steps of a run beyond its first `after` samples, as its results.csv has them."""
    samples, seconds, began = 0, 0.0, 0
    with open(output / "results.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["images_per_second"]:
                until = int(row["samples"])
                if began >= after:
                    samples += until - began
                    seconds += (until - began) / float(row["images_per_second"])
                began = until
    return samples / seconds, seconds / 60


def differs(name: str) -> str:
    """What a row changes, and in what."""
    return ", ".join([ROWS[name].base, *overrides(ROWS[name].changes)])


def table(rows: dict[str, dict], jobs: list[Job], evals: list[str]) -> str:
    """The markdown table of those `jobs` that are in `rows`, {key: what `Ablation.run` returns}."""
    def short(value):
        return f"{value:.3f}".removeprefix("0")

    def numbers(row, whose):
        return [short(value) for folder in evals for value in row["judged"][folder][whose].values()]

    first = next(iter(rows.values()))
    head = ["", "reference's row", "differs from", "MB"]
    for folder in evals:
        name, (auroc, *others) = "/".join(Path(folder).resolve().parts[-2:]), first["judged"][folder]["model"]
        head += [f"{name}: {auroc}", *others]
    head += ["samples", "images/s", "min"]
    lines = [head, ["---"] * len(head), ["16x16 colour thumbnail", "", "", "", *numbers(first, "thumbnail"), "", "", ""]]
    for job in jobs:
        if row := rows.get(job.key):
            lines.append([f"`{job.key}`", ROWS[job.row].reference, differs(job.row), f"{row['mb']:.2f}",
                          *numbers(row, "model"), f"{row['samples']:,}", f"{row['images_per_second']:.0f}",
                          f"{row['minutes']:.1f}"])
    few = [f"\n{folder}: too few negative pairs to speak of FPR {FPRS[-1]}" for folder in evals
           if first["judged"][folder]["negatives"] * float(FPRS[-1]) < 1]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + few) + "\n"


def errors(rows: dict[str, dict], evals: list[str]) -> str:
    """A line for each folder and FPR: what two rows find of the pairs of one type, what they miss, the ratio of misses."""
    (one, first), (other, second) = rows.items()
    said = []
    for folder, fpr in itertools.product(evals, FPRS):
        tpr, tpr_other = (row["judged"][folder]["model"][tpr_at(fpr)] for row in (first, second))
        ratio = f"{(1 - tpr) / (1 - tpr_other):.2f}" if tpr_other < 1 else "inf"
        said.append(f"{folder}: TPR at FPR {fpr} {one} {tpr:.4f}, {other} {tpr_other:.4f}; "
                    f"errors (1 - TPR) {1 - tpr:.4f} / {1 - tpr_other:.4f} = {ratio}")
    return "\n".join(said) + "\n"


def wanted(text: str | None, given: dict, data: list[str]) -> list[str]:
    """The rows of --rows, or all; those that want something which was not given are left out with a word."""
    names = list(ROWS) if text is None else text.split(",")
    for name in names:
        if name not in ROWS:
            near = difflib.get_close_matches(name, ROWS, 1)
            raise UserError(f"--rows {name}: no such row; " + (f"did you mean {near[0]}?" if near else "--list names them"))
    if len(set(names)) < len(names):
        raise UserError(f"--rows {text}: names a row twice")
    stated = all(parse_root(root, 1).expansion == parse_root(root, 8).expansion for root in data)
    wants = {"pretrained": given[FILE] is None and "--pretrained FILE", "no-made": given[DATA] is None and "--made DIR",
             **dict.fromkeys(("x8", "x24"), stated and "a folder in --data that states no expansion of its own")}
    for name in [name for name in names if wants.get(name)]:
        say(f"{name}: left out; it wants {wants[name]}")
        names.remove(name)
    if not names:
        raise UserError(f"--rows {text}: nothing is left to run")
    return names


def check_folders(data: list[str], evals: list[str]) -> None:
    """Raises UserError for a folder that cannot judge, and for one to judge by in which, or below which, one trains."""
    for root, _ in list_roots(data, 1):
        for folder in evals:
            one, other = root.folder.resolve(), Path(folder).resolve()
            if one in (other, *other.parents) or other in one.parents:
                raise UserError(f"--eval {folder}: is trained on, as --data {root.folder}; keep apart what judges the rows")
    for folder in evals:
        types = Counter(item.type for item in find_images(folder))
        if len(types) < 2 or max(types.values()) < 2:
            raise UserError(f"--eval {folder}: needs two types at least, and two images of one; DIR/<type>/*.jpg")


def take_cores(count: int) -> None:
    """Hold this process and those it starts to so many cores; train_v2.py takes a thread for each."""
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--threads: this system cannot hold a process to some cores; leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise UserError(f"--threads {count}: there are {len(cores)} cores")
    os.sched_setaffinity(0, cores[:count])


def say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def arguments(argv):
    parser = Parser(prog="ablation.py", description=__doc__)
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder for the runs, rows.json and table.md")
    parser.add_argument("--data", metavar="ROOTS", help="images to train on, as data= of train_v2.py")
    parser.add_argument("--made", metavar="DIR", help="made documents (python -m synth), one folder a type, mixed in")
    parser.add_argument("--eval", action="append", metavar="DIR", help="DIR/<type>/*.jpg to judge by; may be given again")
    parser.add_argument("--samples", type=int, default=60_000, metavar="N", help="images that each row trains on (60000)")
    parser.add_argument("--rows", metavar="NAME,...", help="rows, in this order (all)")
    parser.add_argument("--pretrained", metavar="FILE", help="weights that the row `pretrained` starts from")
    parser.add_argument("--threads", type=int, metavar="N", help="cores to use (all)")
    parser.add_argument("--same-time", type=float, metavar="MINUTES", help="two rows (reference,ours), so long each")
    parser.add_argument("--quick", action="store_true", help="tiny made images and network, to see that everything runs")
    parser.add_argument("--list", action="store_true", help="print the rows and what they change, and end")
    args = parser.parse_args(argv)
    if args.list:
        return args
    if not args.out:
        parser.error("name a folder to write to")
    for name in ("samples", "threads", "same_time"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} {value}: must be above 0")
    if args.pretrained and not Path(args.pretrained).is_file():
        parser.error(f"--pretrained {args.pretrained}: no such file")
    if args.quick:
        made = Path(args.out) / "made"
        args.samples, args.data, args.eval = min(args.samples, 32), f"{made}/train", [f"{made}/eval"]
    if not args.data or not args.eval:
        parser.error("give --data ROOTS to train on and --eval DIR to judge by")
    return args


def main(argv=None):
    args = arguments(argv)
    if args.list:
        print("\n".join(f"{name:18} {row.reference:24} {differs(name)}" for name, row in ROWS.items()))
        return
    if args.threads:
        take_cores(args.threads)
    data = f"{args.data},{args.made}:1:labelled" if args.made else args.data
    common = {"pretrained": False, "data": data, **(QUICK if args.quick else {})}
    given = {FILE: args.pretrained, DATA: args.data if args.made else None}
    ablation = Ablation(Path(args.out), common, given, args.eval)
    if args.quick:
        write_train(args.data, 6, 2, 0)
        write_eval(args.eval[0], 4, 2, 0, 6)
    roots = load_config("configs/base", overrides(common)).data
    check_folders(roots, args.eval)
    names = wanted("reference,ours" if args.rows is None and args.same_time else args.rows, given, roots)
    if args.same_time and len(names) != 2:
        raise UserError(f"--same-time: wants two rows, such as --rows reference,ours; here {len(names)} would run")
    jobs = [Job(name, name, args.samples) for name in names]
    with ablation.signals:
        try:
            if args.same_time:
                jobs = []
                for name in names:
                    speed = ablation.speed(name, 512 if args.quick else MEASURED)
                    jobs.append(Job(f"{name}-{args.same_time:g}min", name, math.ceil(60 * args.same_time * speed)))
                    say(f"{name}: {speed:.0f} images/s, so {jobs[-1].samples:,} images in {args.same_time:g} min")
            failed = ablation.run_all(jobs)
        except Stopped:
            say("stopped; the same command goes on from here")
            return
    rows = {job.key: ablation.known["rows"][job.key] for job in jobs if job.key not in failed}
    if rows:
        text = table(rows, jobs, args.eval)
        if args.same_time and not failed:
            text += "\n" + errors(rows, args.eval)
        ablation.write("same-time.md" if args.same_time else "table.md", text)
        print(text, end="")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} rows failed, the first {next(iter(failed))}: "
                        f"{next(iter(failed.values()))}; the same command tries them again")


if __name__ == "__main__":
    run_cli(main)
