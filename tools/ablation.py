"""What each part of a recipe is worth: the reference's comparisons and ours, at a scale that this machine can afford.

    python -m tools.ablation OUT --data scans,posters --synthetic synth/train --eval held_out --eval synth/eval
    python -m tools.ablation OUT --data scans --eval held_out --rows reference,ours,arcface --samples 30000
    python -m tools.ablation OUT --data scans --eval held_out --same-time 30      # reference against ours

A row is a run of train_v2.py, from scratch, over the same images and the same number of samples, evaluated by
`python -m eval` on every --eval folder (of types that are in none of --data). --list shows what each row changes; `x8` and
`x24` need --data folders that state no expansion. OUT/NAME is a row's run, OUT/rows.json holds the finished rows: after a
stop the same command continues. At the end OUT/table.md is written and printed. One seed and a short budget: `seed-1` and
`seed-2` show what is noise. --same-time gives two rows the same time instead, from a short measurement of each one's speed.
"""
import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from backbones import get_model
from configs import load_config, read_config
from dataset import list_roots
from eval.folder import find_images
from inference.cli import Parser, run_cli
from inference.errors import UserError, printable
from inference.files import replacing
from synth import write_eval, write_train

ROOT = Path(__file__).resolve().parent.parent
# name: (a config or another row, then what is changed in it; the row of the reference's table that shows the same part)
ROWS = {
    "reference": ("configs/lcnet_cos expansion=1", ""),
    # The one place where the recipes are fitted to a short budget, in ours alone: some hundred steps are far from
    # convergence. There a low scale and a small margin learn fastest (at s = 64 nearly all of the softmax lies on one wrong
    # class while the cosines mean nothing yet), small batches make more steps of the samples, and the network tolerates a
    # higher rate. One class an image: 24 need 24 times the samples. The reference keeps what it published but for that.
    "ours": ("configs/lcnet_strong expansion=1 batch_size=128 lr=0.01 s=16.0 m=0.2", "LBN squeeze"),
    # from the reference's recipe to ours, a part at a time; what then remains is the fit to a short budget
    "reference-strong": ("reference augment=strong", ""),
    "reference-lbn": ("reference-strong head=squeeze norm=lbn", ""),
    "reference-sgd": ("reference-lbn centres_optimizer=sgd centres_lr=0.1 centres_weight_decay=0.0 sample_rate=1.0", ""),
    "reference-warmup": ("reference-sgd margin_warmup=0.4", ""),
    "reference-128": ("reference batch_size=128", ""),  # more steps: the published batch is for longer runs
    # ours, with one part put back
    "reference-augment": ("ours augment=reference", ""),
    "centres-adamw": ("ours centres_optimizer=adamw centres_lr=0.001 centres_weight_decay=0.001", ""),
    "fixed-margin": ("ours margin_warmup=0.0", ""),
    # the comparisons of the reference's table, each on ours: its architecture, `ln-cos`, hardly learns in a short run
    "ln-cos": ("ours head=flatten norm=ln", "ln-cos"),
    "arcface": ("ours margin=arcface", "ln-arc"),
    "softmax": ("ours margin=softmax m=0.0", "ln-softmax"),
    "ln": ("ours norm=ln", "ln-cos-squeeze"),
    "bn": ("ours norm=bn", "bn-cos"),
    "flatten": ("ours head=flatten", ""),
    "gap": ("ours head=gap", "ln-cos-gap"),
    "f128-r96": ("ours embedding_size=128 image_size=96", "f128-r96-ln-cos"),
    "lcnet_100": ("ours network=lcnet_100", ""),
    "mobilenetv3": ("ours network=mobilenetv3_small_050", ""),
    "efficientnet_b0": ("ours network=efficientnet_b0", "efficientnet_b0-ln-cos"),
    "x8": ("ours expansion=8", ""),
    "x24": ("ours expansion=24", ""),
    "pretrained": ("ours pretrained={pretrained}", ""),
    # ours, with one number changed
    "ema": ("ours ema=0.999", ""),
    "batch-64": ("ours batch_size=64", ""),
    "batch-256": ("ours batch_size=256", ""),
    "lr-3e-3": ("ours lr=0.003", ""),
    "lr-3e-2": ("ours lr=0.03", ""),
    "centres-lr-0.03": ("ours centres_lr=0.03", ""),
    "centres-lr-0.3": ("ours centres_lr=0.3", ""),
    "s-32": ("ours s=32.0", ""),
    "s-64": ("ours s=64.0", ""),
    "m-0": ("ours m=0.0", ""),
    "m-0.4": ("ours m=0.4", ""),
    "cosine": ("ours schedule=cosine", ""),
    "no-synthetic": ("ours data={data}", ""),
    "seed-1": ("ours seed=1", ""),
    "seed-2": ("ours seed=2", ""),
}
NEEDS = {"pretrained": "--pretrained", "data": "--data without --synthetic"}  # what {pretrained} and {data} stand for
FPRS = "1e-2", "1e-4"  # what is printed; the second is the reference's measure, the first says more of short runs
MEASURED = 12_288  # samples that a speed is measured over
QUICK = ("image_size=32", "network=test_efficientnet", "embedding_size=16", "batch_size=8", "num_workers=0", "log_every=1")
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}  # as run.sh: twice as fast on a CPU


def settings(name: str, common: list[str], given: dict) -> list[str]:
    """[config, key=value, ...] of a row. common: what is changed in all rows; given: values of {pretrained} and {data}."""
    base, *changes = (word.format(**given) for word in ROWS[name][0].split())
    return [*settings(base, common, given), *changes] if base in ROWS else [base, *changes, *common]


def differs(name: str) -> str:
    return ", ".join(word.format(**NEEDS) for word in ROWS[name][0].split())


def read_rows(file: Path) -> dict[str, dict]:
    """The finished rows, {key: row}."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = json.loads(file.read_text()) if file.exists() else {}
        if all("asked" in row for row in rows.values()):
            return rows
    except OSError as error:
        raise UserError(f"{file.parent}: cannot be written ({error.strerror}); give another OUT") from None
    except (ValueError, TypeError, AttributeError):
        pass
    raise UserError(f"{file}: not what this command wrote; move it away, or give another OUT")


def finished_row(file: Path, key: str, words: list[str], samples: int, evals: list[str]) -> dict:
    """A row, from `file` or trained now beside it: `settings` `words`, so many `samples`, evaluated on `evals`."""
    output, rows = file.parent / key, read_rows(file)
    words = [*words, f"output={output}"]
    words.append(f"max_steps={math.ceil(samples / load_config(words[0], words[1:]).batch_size)}")
    cfg, asked = load_config(words[0], words[1:]), [*words, *evals]
    if row := rows.get(key):
        if row["asked"] != asked:
            there, here = (" ".join(sorted(set(a) - set(b))) for a, b in ((row["asked"], asked), (asked, row["asked"])))
            raise UserError(f"{file}: row {key} is there with {there}, asked for is {here}; give another OUT")
        return row
    say(f"{key}: log in {output / 'training.log'}")
    earlier = read_config(output) if (output / "config.json").exists() else {}
    same = {**earlier, "resume": ""} == {**cfg, "resume": ""}  # else a stopped run of other settings is there
    call(str(ROOT / "train_v2.py"), *words, f"resume={'auto' if same else 'false'}")
    speed, minutes = speed_of(output)
    row = {"asked": asked, "samples": cfg.max_steps * cfg.batch_size,
           "mb": sum(p.numel() for p in get_model(cfg, False).parameters()) * 4 / 1e6,
           "images_per_second": speed, "minutes": minutes, "evaluated": {}}
    say(f"  {minutes:.1f} min at {speed:.0f} images/s")
    for folder in evals:
        found = json.loads(call("-m", "eval", "--model", str(output), "--data", folder, "--json"))
        row["evaluated"][folder] = {"model": numbers(found), "thumbnail": numbers(found["baseline"]),
                                    "negatives": found["pairs"]["negative"]}
        say(f"  {folder}: " + ", ".join(f"{what} {value:.4f}" for what, value in numbers(found).items()))
    with replacing(file) as partial:
        partial.write_text(json.dumps({**rows, key: row}, indent=2) + "\n")
    return row


def call(*words: str) -> str:
    """stdout of a Python command of this project. Raises UserError with its last line when it fails."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**ALLOCATOR, **os.environ, "PYTHONPATH": str(ROOT)})
    try:
        out, error = process.communicate()
    except KeyboardInterrupt:
        process.terminate()
        process.communicate()  # a training saves its state first
        raise
    if process.returncode:
        raise UserError((error.strip().splitlines() or [f"status {process.returncode}"])[-1].removeprefix("error: "))
    return out


def numbers(metrics: dict) -> dict:
    """The numbers of a row, by the table's names, of what `python -m eval --json` prints."""
    found = {f"TPR at {fpr}": metrics["tpr_at_fpr"][fpr] for fpr in FPRS}
    return {"AUROC": metrics["auroc"], **found, "top-1": metrics["top1"]}


def speed_of(output: Path) -> tuple[float, float]:
    """(images per second, minutes) of the steps of a run, as its results.csv has them; the first entry warms up."""
    with open(output / "results.csv", newline="") as file:
        rows = [(int(row["samples"]), float(row["images_per_second"])) for row in csv.DictReader(file)
                if row["images_per_second"]]
    parts = [(end - begin, (end - begin) / speed) for (begin, _), (end, speed) in zip([(0, 0), *rows], rows)]
    samples, seconds = map(sum, zip(*parts[1:] or parts))
    return samples / seconds, sum(seconds for _, seconds in parts) / 60


def table(rows: list[tuple[str, str, dict]], evals: list[str]) -> str:
    """The markdown table of `rows`, (key, name, `finished_row`)."""
    def cells(row, whose):
        return [f"{value:.3f}".removeprefix("0") for folder in evals for value in row["evaluated"][folder][whose].values()]

    first = rows[0][2]
    head = ["", "reference's row", "differs from", "MB"]
    for folder in evals:
        place, (auroc, *others) = "/".join(Path(folder).resolve().parts[-2:]), first["evaluated"][folder]["model"]
        head += [f"{place}: {auroc}", *others]
    head += ["samples", "images/s", "min"]
    lines = [head, ["---"] * len(head), ["16x16 color thumbnail", "", "", "", *cells(first, "thumbnail"), "", "", ""]]
    lines += [[f"`{key}`", ROWS[name][1], differs(name), f"{row['mb']:.2f}", *cells(row, "model"), f"{row['samples']:,}",
               f"{row['images_per_second']:.0f}", f"{row['minutes']:.1f}"] for key, name, row in rows]
    few = [f"\n{folder}: too few negative pairs for FPR {FPRS[-1]}" for folder in evals
           if first["evaluated"][folder]["negatives"] * float(FPRS[-1]) < 1]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + few) + "\n"


def errors(rows: list[tuple[str, str, dict]], evals: list[str]) -> str:
    """A line for each folder and FPR: what two rows find of the pairs of one type, what they miss, the ratio of misses."""
    lines = []
    for folder in evals:
        for fpr in FPRS:
            (one, tpr), (other, its) = ((key, row["evaluated"][folder]["model"][f"TPR at {fpr}"]) for key, _, row in rows)
            ratio = f"{(1 - tpr) / (1 - its):.2f}" if its < 1 else "inf"
            lines.append(f"{folder}: TPR at FPR {fpr} {one} {tpr:.4f}, {other} {its:.4f}; "
                         f"errors (1 - TPR) {1 - tpr:.4f} / {1 - its:.4f} = {ratio}\n")
    return "".join(lines)


def wanted(text: str | None, given: dict) -> list[str]:
    """The rows of --rows, or all that need nothing which was not given."""
    missing = [f"{{{name}}}" for name, value in given.items() if not value]
    able = [name for name, (changes, _) in ROWS.items() if not any(word in changes for word in missing)]
    names = able if text is None else text.split(",")
    for name in names:
        if name not in ROWS:
            raise UserError(f"--rows {name}: no such row; --list names them")
        if name not in able:
            raise UserError(f"--rows {name}: needs --pretrained FILE or --synthetic DIR, see --list")
    if len(set(names)) < len(names):
        raise UserError(f"--rows {text}: names a row twice")
    return names


def check_folders(data: list[str], evals: list[str]) -> None:
    """Raises UserError for a folder to evaluate on that has no pairs, or that training sees too."""
    for folder in evals:
        types = Counter(item.type for item in find_images(folder))
        if len(types) < 2 or max(types.values()) < 2:
            raise UserError(f"--eval {folder}: needs two types at least, and two images of one; DIR/<type>/*.jpg")
        for root, _ in list_roots(data, 1):
            one, other = root.folder.resolve(), Path(folder).resolve()
            if one in (other, *other.parents) or other in one.parents:
                raise UserError(f"--eval {folder}: is trained on, as --data {root.folder}; evaluate on other images")


def say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def arguments(argv):
    parser = Parser(prog="python -m tools.ablation", description=__doc__)
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder for the runs, rows.json and table.md")
    parser.add_argument("--data", metavar="ROOTS", help="images to train on, as data= of train_v2.py")
    parser.add_argument("--synthetic", "--made", metavar="DIR", help="synthetic documents too, one folder a type")
    parser.add_argument("--eval", action="append", metavar="DIR", help="DIR/<type>/*.jpg to evaluate on; may be repeated")
    parser.add_argument("--samples", type=int, default=60_000, metavar="N", help="images that each row trains on")
    parser.add_argument("--rows", metavar="NAME,...", help="rows, in this order (default: all)")
    parser.add_argument("--pretrained", metavar="FILE", help="weights that the row `pretrained` starts from")
    parser.add_argument("--threads", type=int, metavar="N", help="cores to use (default: all)")
    parser.add_argument("--same-time", type=float, metavar="MINUTES", help="two rows (reference,ours), so long each")
    parser.add_argument("--quick", action="store_true", help="tiny images and network, to see that everything runs")
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
        made = f"{args.out}/synthetic"
        args.samples, args.data, args.eval = min(args.samples, 32), f"{made}/train", [f"{made}/eval"]
    if not args.data or not args.eval:
        parser.error("give --data ROOTS to train on and --eval DIR to evaluate on")
    return args


def main(argv=None):
    args = arguments(argv)
    if args.list:
        print("\n".join(f"{name:18} {reference:24} {differs(name)}" for name, (_, reference) in ROWS.items()))
        return
    if args.threads:  # train_v2.py takes a thread for each core that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])
    data = f"{args.data},{args.synthetic}:1:labelled" if args.synthetic else args.data
    given = {"pretrained": args.pretrained, "data": args.data if args.synthetic else None}
    names = wanted("reference,ours" if args.rows is None and args.same_time else args.rows, given)
    if args.same_time and len(names) != 2:
        raise UserError(f"--same-time: needs two rows, such as --rows reference,ours; here {len(names)} would run")
    file = Path(args.out) / "rows.json"
    read_rows(file)  # what is wrong with it is said at once
    if args.quick:
        write_train(args.data, 6, 2, 0)
        write_eval(args.eval[0], 4, 2, 0, 6)
    check_folders(data.split(","), args.eval)
    common = ["pretrained=false", f"data={data}", *(QUICK if args.quick else ())]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows, failed = [], {}
    try:
        for name in names:
            key, samples, words = name, args.samples, settings(name, common, given)
            try:
                if args.same_time:
                    speed = finished_row(file, f"speed-{name}", [*words, "log_every=4"], 512 if args.quick else MEASURED, [])
                    key = f"{name}-{args.same_time:g}min"
                    samples = math.ceil(60 * args.same_time * speed["images_per_second"])
                rows.append((key, name, finished_row(file, key, words, samples, args.eval)))
            except UserError as error:  # one that failed is no reason to skip those after it
                failed[name] = str(error)
                say(f"{name} failed: {error}")
    except KeyboardInterrupt:
        say("stopped; the same command continues from here")
        return
    if rows:
        text = table(rows, args.eval)
        if args.same_time and not failed:
            text += "\n" + errors(rows, args.eval)
        with replacing(Path(args.out) / ("same-time.md" if args.same_time else "table.md")) as partial:
            partial.write_text(text)
        print(text, end="")
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} rows failed, the first {next(iter(failed))}: "
                        f"{next(iter(failed.values()))}; the same command tries them again")


if __name__ == "__main__":
    run_cli(main)
