"""What a teacher is worth to a small network in the same time: arms x seeds, on sets of types that nobody trained on.

    python benchmarks/bench_teachers.py --out OUT --data REAL:1:labelled --eval HELD [--eval SET]... [--json]
    python benchmarks/bench_teachers.py --out OUT --data ... --eval ... --arms none,match,relational --seeds 3 --steps 2000
    python benchmarks/bench_teachers.py --quick

Every run is configs/distill from scratch, with --set key=value where given. The arm `none` has no teacher and --steps steps.
The others have fewer, so that their CPU time is the same: of it go first what it takes to ask the teacher about all images
(tools.cache_teacher), in full for each run, and then what their steps cost more, by steps of all arms in turns. The table
shows what CPU seconds the runs came to; on a machine with other work these differ by some tenths for the same run.
OUT holds a run for each arm and seed, OUT/rows.json what was found: after a stop the same command continues.
gain: mean AUROC of the arm less that of `none`; spread: the deviation of one run, pooled over both arms; t: Welch's.
In the JSON document `ours` is the arm's 1 - AUROC, `peer` that of `none`, `limit` the thumbnail's.
"""
import csv
import json
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import Report, UserError, run_cli, synchronize

from configs import load_config
from engine.distributed import Ranks
from engine.optimizer import make_optimizer
from engine.parallel import prepare
from inference.classify import DEFAULT_MODEL
from inference.files import replacing
from synth import NEVER_TRAINED, write_eval, write_train
from tasks import build_task
from tools.ablation import ROOT, call, numbers

# name: (what it changes, whether it asks the teacher of --teacher)
ARMS = {
    "none": ("teacher=", False),
    "clip_kl": ("teacher_term=clip_kl teacher_weight=1.0", True),          # the DocClassifier reference's
    "match": ("teacher_term=match teacher_weight=20.0", True),
    "relational": ("teacher_term=relational teacher_weight=2.0", True),
    "rkd": ("teacher_term=rkd teacher_weight=50.0", True),
    "ema": ("teacher=ema teacher_term=relational teacher_weight=1.0", False),
}
WARM_UP, ROUNDS = 3, 25  # steps of each arm, in turns, by which their cost is known
QUICK = ("image_size=32", "layout=4", "network=test_efficientnet", "embedding_size=16", "batch_size=8", "num_workers=0")


def timed(function: Callable, *words: str):
    """(what it returns, CPU seconds that the processes it waits for took)."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = function(*words)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


class Step:
    """Calling it makes a step of a run's config, as train_v2.py does; returns its CPU seconds."""

    def __init__(self, words: list[str]):
        self.cfg = load_config(words[0], [*words[1:], "log_every=1000000"])
        ranks = Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.task = build_task(self.cfg, ranks)
        self.task.forward, _ = prepare(self.task.model, self.task.example, ranks, self.cfg.compile, self.cfg.precision)
        self.optimizer = make_optimizer(self.task.param_groups(), self.cfg.batch_size)
        self.batches, self.done, self.keep = self.task.batches(0), 0, torch.zeros((), dtype=torch.bool, device=ranks.device)

    def __call__(self) -> float:
        began = time.process_time()
        self.task.begin_step(self.done, 1.0)
        sum(self.task.losses(next(self.batches)).values()).backward()
        torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self.cfg.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.finish_step(self.keep)
        synchronize()
        self.done += 1
        return time.process_time() - began


class Bench:
    """The runs of one folder, found or made; what is made is kept in `rows.json`."""

    def __init__(self, report: Report, out: Path):
        self.args, self.say, self.out = report.args, report.say, out
        self.file = out / "rows.json"
        try:
            out.mkdir(parents=True, exist_ok=True)
            self.rows = json.loads(self.file.read_text()) if self.file.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"--out {out}: cannot be used ({error})") from None
        self.common = [f"data={self.args.data}", "eval_every=0", "save_every=0", *(QUICK if report.quick else ()),
                       *self.args.set]

    def kept(self, key: str, asked: list, make: Callable[[], dict]) -> dict:
        """The row `key`, made now unless it is there."""
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = {"asked": asked, **make()}
            with replacing(self.file) as partial:
                partial.write_text(json.dumps(self.rows, indent=2) + "\n")
        if row["asked"] != asked:
            raise UserError(f"{self.file}: the row {key} was made with {row['asked']}, asked for is {asked}; give another "
                            "--out")
        return row

    def cached(self) -> dict:
        """The teacher's file, and what it took to make."""
        words = ["configs/distill", str(self.out / "teacher.safetensors"), f"teacher={self.args.teacher}", *self.common,
                 f"image_size={self.args.teacher_size}"]

        def make():
            call("-m", "tools.cache_teacher", *words)  # the images decoded, too, which every run has to
            return {"cpu": timed(call, "-m", "tools.cache_teacher", *words)[1]}
        return self.kept("teacher", words, make)

    def words(self, arm: str) -> list[str]:
        changes, asks = ARMS[arm]
        teacher = [f"teacher={self.out / 'teacher.safetensors'}"] if asks else []
        return ["configs/distill", *self.common, *teacher, *changes.split()]

    def train(self, key: str, arm: str, steps: int, seed: int) -> dict:
        words = [*self.words(arm), f"max_steps={steps}", f"seed={seed}"]

        def make():
            output = self.out / key
            _, cpu = timed(call, str(ROOT / "train_v2.py"), *words, f"output={output}")
            with open(output / "results.csv", newline="") as file:
                shares = [float(row[name]) for row in csv.DictReader(file) for name in row
                          if name.startswith("share/") and row[name]]
            return {"steps": steps, "cpu": cpu, "shares": shares}
        return self.kept(key, words, make)

    def step_costs(self, arms: list[str]) -> dict[str, float]:
        """{arm: CPU seconds of a step}, in turns within one process, as other work on the machine changes these too: `none`
        by its median, the others by the median of how many times as much they took right after it."""
        words = [self.words(arm) for arm in arms]

        def make():
            steps = [Step(of) for of in words]
            times = [[step() for step in steps] for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
            none = statistics.median(first for first, *_ in times)
            return {"cost": [none * statistics.median(row[i] / row[0] for row in times) for i in range(len(arms))]}
        return dict(zip(arms, self.kept(f"steps of {','.join(arms)}", words, make)["cost"]))

    def evaluated(self, key: str, folder: str) -> dict:
        def make():
            found = json.loads(call("-m", "eval", "--model", str(self.out / key), "--data", folder, "--json"))
            return {"model": numbers(found), "thumbnail": numbers(found["baseline"])}
        return self.kept(f"{key} on {folder}", [folder], make)


def compare(arm: list[float], none: list[float]) -> tuple[float, float, float]:
    """(gain of the means, pooled deviation of one run, Welch's t) of two arms' numbers."""
    gain = statistics.mean(arm) - statistics.mean(none)
    if min(len(arm), len(none)) < 2:
        return gain, math.nan, math.nan
    one, other = statistics.variance(arm), statistics.variance(none)
    error = math.sqrt(one / len(arm) + other / len(none))
    return gain, math.sqrt((one + other) / 2), gain / error if error else math.nan


def main():
    report = Report(
        __doc__, ("--out", {"metavar": "DIR", "help": "folder of the runs"}),
        ("--data", {"metavar": "ROOTS", "help": "images to train on, as data= of train_v2.py"}),
        ("--eval", {"action": "append", "metavar": "DIR", "help": "DIR/<type>/*.jpg, of types that are in no --data"}),
        ("--arms", {"default": ",".join(ARMS), "help": "of " + ", ".join(ARMS)}),
        ("--seeds", {"type": int, "default": 3}),
        ("--steps", {"type": int, "default": 2000, "help": "of the arm none"}),
        ("--teacher", {"default": str(DEFAULT_MODEL), "help": "as the key teacher (default: the shipped model)"}),
        ("--teacher-size", {"type": int, "default": 128, "help": "pixels of the images that the teacher is shown"}),
        ("--set", {"action": "append", "default": [], "metavar": "key=value", "help": "in every run"}), head=False)
    args = report.args
    if report.quick:
        args.steps, args.seeds, args.arms = 30, 1, "none,match"
    if min(args.steps, args.seeds) < 1:
        raise UserError("--steps, --seeds: give 1 or more of each")
    arms = ["none", *(name for name in args.arms.split(",") if name != "none")]
    if unknown := [name for name in arms if name not in ARMS]:
        raise UserError(f"--arms {unknown[0]}: not known; choose from {', '.join(ARMS)}")
    with tempfile.TemporaryDirectory() as scratch:
        if report.quick:
            args.out, args.data, args.eval = f"{scratch}/out", f"{scratch}/train:1:labelled", [f"{scratch}/eval"]
            write_train(f"{scratch}/train", 8, 2, 0)
            write_eval(args.eval[0], 6, 3, seed=0, first_type=2 * NEVER_TRAINED)
        if not (args.out and args.data and args.eval):
            raise UserError("give --out DIR, --data ROOTS and --eval DIR, or --quick")
        bench = Bench(report, Path(args.out).resolve())
        tell(report, bench, arms)
    report.end()


def tell(report: Report, bench: Bench, arms: list[str]) -> None:
    """Make what is missing, an arm of every seed before the next seed, and print the table."""
    args = report.args
    made = bench.cached()["cpu"] if any(ARMS[arm][1] for arm in arms) else 0.0
    cost = bench.step_costs(arms)
    budget = args.steps * cost["none"]
    if made >= budget and not report.quick:
        raise UserError(f"--steps {args.steps}: take {budget:.0f} CPU seconds, asking the teacher alone takes {made:.0f}; "
                        "give more")
    steps = {arm: max(1, round((budget - made * ARMS[arm][1]) / cost[arm])) for arm in arms}  # of none: --steps
    report.say(f"asking the teacher: {made:.0f} CPU seconds; a step: "
               + ", ".join(f"{arm} {1000 * cost[arm]:.0f} ms" for arm in arms))
    runs = {}
    for seed in range(args.seeds):
        for arm in arms:
            runs[arm, seed] = run = bench.train(f"{arm}-{seed}", arm, steps[arm], seed)
            found = [bench.evaluated(f"{arm}-{seed}", folder)["model"]["AUROC"] for folder in args.eval]
            report.say(f"{arm}, seed {seed}: {run['steps']} steps, {run['cpu'] / 60:.1f} CPU min, AUROC "
                       + ", ".join(f"{value:.4f}" for value in found))
    for folder in args.eval:
        found = {arm: [bench.evaluated(f"{arm}-{seed}", folder) for seed in range(args.seeds)] for arm in arms}
        thumbnail = found["none"][0]["thumbnail"]
        report.say(f"\n{Path(folder).name}: mean +- deviation over {args.seeds} seeds; thumbnail "
                   + ", ".join(f"{name} {value:.4f}" for name, value in thumbnail.items()))
        report.say(f"{'':<12}{'steps':>7}{'CPU min':>9}{'share':>8}" + "".join(f"{name:>18}" for name in thumbnail)
                   + f"{'gain':>10}{'spread':>9}{'t':>8}")
        for arm in arms:
            own = [bench.rows[f"{arm}-{seed}"] for seed in range(args.seeds)]
            shares = [share for row in own for share in row["shares"]]
            minutes = statistics.mean(row["cpu"] for row in own) / 60 + made * ARMS[arm][1] / 60
            line = f"{arm:<12}{steps[arm]:>7}{minutes:>9.1f}{f'{statistics.median(shares):.3f}' if shares else '':>8}"
            for name in thumbnail:
                values = [row["model"][name] for row in found[arm]]
                spread = statistics.stdev(values) if len(values) > 1 else math.nan
                line += f"{statistics.mean(values):>9.4f} +-{spread:>6.4f}"
            auroc, none = ([row["model"]["AUROC"] for row in found[name]] for name in (arm, "none"))
            if arm != "none":
                gain, spread, t = compare(auroc, none)
                line += f"{gain:>+10.4f}{spread:>9.4f}{t:>8.1f}"
            report.say(line)
            report.record(f"{Path(folder).name}: {arm}, 1 - AUROC", 1 - statistics.mean(auroc), 1 - statistics.mean(none),
                          1 - thumbnail["AUROC"], "share")


if __name__ == "__main__":
    run_cli(main)
