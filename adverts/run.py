"""From a folder of images to a submission, a report and a classifier to serve, in stages.

    python -m adverts run --data DIR --out OUT [--csv FILE.csv] [--test DIR|CSV] [--models thumbnail tfidf ...] [--quick]

Each stage is a command of this project, is printed as such, and can be given by hand. A stage whose command and inputs are
those of last time, and whose files are there unchanged, is skipped: after Ctrl-C, or with more images, run the command
again.

    split        OUT/split.csv: folds, test images
    ocr          OUT/texts.jsonl, with OUT/ocr.sqlite: the text of each image, where a model wants it
    train        OUT/runs/MODEL_foldK: a network for each fold (the models of scikit-learn need no training beforehand)
    predict      OUT/predictions/MODEL.safetensors: what it says of images that it has not learned from
    tune         OUT/fusion.json, OUT/predictions/fused.safetensors: how much each model counts; the teacher
    submit       OUT/submission.csv, OUT/report/report.html
    classifier   OUT/classifier: networks that learned from all training images, with weights tuned for these alone
"""
import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from adverts.ocr import duration
from adverts.split import Split, add_options, check_options, content_digest, read_split, split_arguments
from engine.progress import unfinished
from inference.classifier import file_names
from inference.cli import Parser
from inference.errors import UserError, printable
from inference.files import replacing
from inference.fusion import read_fusion
from inference.image import available_cores, list_images
from synth.folders import files_digest


class Model(NamedTuple):
    """kind: what it sees, image or text. trained: by train_v2.py with the config of its name, or else fitted within
    `predict`. seconds: on one core, for each training image and fold, to tell beforehand how long it takes. quick: keys for
    --quick. default: used unless --models says otherwise."""
    kind: str
    trained: bool
    seconds: float
    quick: tuple[str, ...] = ()
    default: bool = False


MODELS = {
    "thumbnail": Model("image", False, .002, default=True),
    "tfidf": Model("text", False, .005, default=True),
    "ads_text_small": Model("text", True, .03, ("max_steps=20",), default=True),
    "ads_small": Model("image", True, .25, ("max_steps=10", "image_size=96"), default=True),
    **{name: Model("image", True, 60) for name in ("ads_b4", "ads_v2m", "ads_nfnet", "ads_r200d", "ads_swin")},
    **{name: Model("text", True, 60) for name in ("ads_roberta", "ads_bert_ext", "ads_bert")},
}
OCR_SECONDS = .3    # for a small image, on one core
START_SECONDS = 5   # of a command
QUICK_FOLDS = 3
# The networks that are served learn from the teacher, too, where there are images without a label for it to speak of.
STUDENT = ("teacher={fused}", "unlabeled=test", "teacher_on=unlabeled")
SET_HERE = ("data", "texts", "split", "fold", "output", "resume")  # keys of a training
GRACE = 2  # seconds for a command to end by the Ctrl-C that the terminal has sent it
# As run.sh has it: glibc keeps large buffers, which nearly doubles a CPU's speed, and OpenMP's threads, which also wait on
# cores that other programs use, sleep rather than spin (the last is libgomp's own word for it, and takes precedence there).
SPEED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "OMP_WAIT_POLICY": "PASSIVE",
         "GOMP_SPINCOUNT": "10000"}
RECORDS = "stages.json"


class Stage(NamedTuple):
    """A command and what comes of it. words: after `python`. inputs, outputs: files; an input may also be a text that its
    result depends on. folder: of a run, which is removed before another command writes to it. seconds: that it may take."""
    name: str
    words: list[str]
    inputs: list[Path | str]
    outputs: list[Path]
    seconds: float = START_SECONDS
    folder: Path | None = None


class Stages:
    """Runs stages and remembers in OUT/stages.json what has been done: {name: {key, outputs, seconds}}."""

    def __init__(self, out: Path):
        self.out, self.path = out, out / RECORDS
        try:
            self.records = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
            if not isinstance(self.records, dict) or not all(isinstance(record, dict) for record in self.records.values()):
                raise ValueError
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{self.path}: cannot be read; remove it, and all stages are run again") from None

    def key(self, stage: Stage) -> str:
        """Of all that the result of a stage depends on."""
        seen = [stage.words, *map(_digest, stage.inputs)]
        return hashlib.blake2b(json.dumps(seen).encode(), digest_size=8).hexdigest()

    def done(self, stage: Stage) -> bool:
        """Whether its files are there, as this very stage has written them."""
        record = self.records.get(stage.name, {})
        return record.get("key") == self.key(stage) and record.get("outputs") == list(map(_digest, stage.outputs))

    def run(self, stage: Stage, place: str = "") -> None:
        """Run a stage, unless it is done. A training that was stopped is resumed; one that had ended, and whose files
        are no longer there, begins anew. Raises UserError when the command fails."""
        if self.done(stage):
            print(f"{place}{stage.name}: done before", flush=True)
            return
        key, record = self.key(stage), self.records.get(stage.name, {})
        if stage.folder and (record.get("key") != key or "outputs" in record):
            shutil.rmtree(stage.folder, ignore_errors=True)
        self._remember(stage.name, {"key": key})
        began = time.monotonic()
        about = f"{place}{stage.name}, about {duration(stage.seconds)}"
        print(printable(f"{about}: python {shlex.join(stage.words)}"), flush=True)
        log = self.out / "logs" / f"{stage.name.replace(' ', '_')}.log" if stage.folder else None
        try:
            status = _wait_for(stage.words, log)
        except KeyboardInterrupt:
            print(printable(f"stopped in stage {stage.name}; run the command again to resume"), file=sys.stderr)
            raise
        if status:
            where = f"{log} says why" if log else "its error is above"
            raise UserError(printable(f"stage {stage.name} failed ({status}), {where}; run the command again when that is "
                                      "corrected: what is done is not done again"))
        if stage.folder and (reached := unfinished(stage.folder)):  # a signal to the training alone: it ends as it should
            raise UserError(printable(f"stage {stage.name} was stopped at {reached}; run the command again to resume"))
        if missing := [path for path in stage.outputs if not path.is_file()]:
            raise UserError(printable(f"stage {stage.name} has not written {missing[0]}; run the command again"))
        self._remember(stage.name, {"key": key, "outputs": list(map(_digest, stage.outputs)),
                                    "seconds": round(time.monotonic() - began, 1)})

    def _remember(self, name, record):
        self.records[name] = record
        with replacing(self.path) as partial:
            partial.write_text(json.dumps(self.records, indent=1), encoding="utf-8")


def _digest(given):
    """Of a file, "" where it is not there; a text stands for itself."""
    return given if isinstance(given, str) else content_digest(given) if given.is_file() else ""


def _wait_for(words: list[str], log: Path | None) -> int:
    """The exit status of `python WORDS`, faster for SPEED; what it says goes to the file `log`, if that is given. Ctrl-C and
    SIGTERM reach it, too, and it has time to save what it has. Raises UserError where the log cannot be written."""
    def stop(number, frame):
        process.terminate()
        raise KeyboardInterrupt

    try:
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        opened = open(log, "wb") if log else contextlib.nullcontext()
    except OSError as error:
        raise UserError(printable(f"{log}: cannot be written ({error.strerror}); free its disk, or give another --out")
                        ) from None
    with opened as file:
        process = subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, env={**SPEED, **os.environ})
        before = signal.signal(signal.SIGTERM, stop)
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:  # a terminal has sent it to the command as well, `kill -INT` has not
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.terminate()  # a training that is ending already takes no notice
                process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def alone(out: Path):
    """Makes the folder, which no other `adverts run` may use meanwhile. Raises UserError where one does, or where the folder
    cannot be written. Without locks of files, as on Windows, others are not noticed."""
    try:
        (out / "predictions").mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "wb")
    except OSError as error:
        raise UserError(printable(f"--out {out}: cannot be written ({error.strerror}); give another folder")) from None
    with lock as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(printable(f"--out {out}: another `adverts run` is at work there; wait until it ends, or give "
                                      "another folder")) from None
        except (ImportError, OSError):  # OSError: a file system without locks
            pass
        yield


class Plan:
    """The stages for a split, in order. names: the models. keys: {model: further keys of its training}."""

    def __init__(self, args, out: Path, split: Split, data_digest: str, names: list[str], keys: dict[str, list[str]]):
        self.data, self.out, self.digest, self.names, self.keys, self.args = args.data, out, data_digest, names, keys, args
        self.folds, self.count, self.learned = split.folds, len(split.rows), len(split.part("train"))
        self.others, self.tests = self.learned < self.count, bool(split.part("test"))
        self.split, self.texts = out / "split.csv", out / "texts.jsonl"
        self.reads = any(MODELS[name].kind == "text" for name in names)
        self.cores = min(available_cores(), 8)  # more do not make these networks faster

    def stages(self) -> list[Stage]:
        found = []
        for name in sorted(self.names, key=lambda name: MODELS[name].seconds):  # so that there is soon a result
            if MODELS[name].kind == "text" and self.ocr() not in found:
                found.append(self.ocr())
            found += self.model(name)
        fusion, fused = self.out / "fusion.json", self.predictions("fused")
        found += [self.tune("tune", self.names, fusion, "--fused", str(fused)), self.submit(fusion)]
        if trained := [name for name in self.names if MODELS[name].trained]:
            found += self.classifier(trained, fused)
        return found

    def predictions(self, name: str) -> Path:
        return self.out / "predictions" / f"{name}.safetensors"

    def ocr(self) -> Stage:
        words = ["-m", "adverts", "ocr", "--data", self.data, "--split", str(self.split), "--cache",
                 str(self.out / "ocr.sqlite"), "--out", str(self.texts)]
        return Stage("ocr", words, [self.split, self.digest], [self.texts],
                     START_SECONDS + OCR_SECONDS * self.count / self.cores)

    def model(self, name: str) -> list[Stage]:
        """Its training for each fold, if it has one, and its predictions."""
        words = ["-m", "adverts", "predict", "--data", self.data, "--split", str(self.split), "--out",
                 str(self.predictions(name)), *(["--texts", str(self.texts)] if MODELS[name].kind == "text" else [])]
        inputs = [self.split, self.digest, *([self.texts] if MODELS[name].kind == "text" else [])]
        seconds = MODELS[name].seconds * self.learned * self.folds / self.cores
        if not MODELS[name].trained:
            return [Stage(f"predict {name}", [*words, "--model", name], inputs, [self.predictions(name)],
                          START_SECONDS + seconds)]
        runs = [self.out / "runs" / f"{name}_fold{fold}" for fold in range(self.folds)]
        return [*(self.train(f"train {name} fold {fold}", name, run, [f"fold={fold}"]) for fold, run in enumerate(runs)),
                Stage(f"predict {name}", [*words, *map(str, runs)], inputs + [run / "model.pt" for run in runs],
                      [self.predictions(name)])]

    def train(self, stage: str, name: str, run: Path, keys: list[str], inputs: tuple = ()) -> Stage:
        source, seen = {"image": (f"data={self.data}", self.digest), "text": (f"texts={self.texts}", self.texts)}[
            MODELS[name].kind]
        words = ["train_v2.py", f"configs/{name}", source, f"split={self.split}", *keys, f"output={run}", "resume=auto",
                 *(MODELS[name].quick if self.args.quick else ()), *self.keys.get(name, [])]
        seconds = 0 if self.args.quick else MODELS[name].seconds * self.learned / self.cores
        return Stage(stage, words, [self.split, seen, *inputs], [run / "model.pt", run / "run.json"],
                     START_SECONDS + seconds, folder=run)

    def tune(self, stage: str, names: list[str], fusion: Path, *more: str) -> Stage:
        files = [self.predictions(name) for name in names]
        outputs = [fusion, *([self.predictions("fused")] if more else [])]
        words = ["-m", "adverts", "tune", *map(str, files), "--split", str(self.split), "--out", str(fusion), *more]
        return Stage(stage, words, [self.split, *files], outputs)

    def submit(self, fusion: Path) -> Stage:
        files, report = [self.predictions(name) for name in self.names], self.out / "report"
        submission = [self.out / "submission.csv"] if self.tests else []
        words = ["-m", "adverts", "submit", *map(str, files), "--split", str(self.split), "--fusion", str(fusion),
                 "--report", str(report), "--data", self.data, *(["--texts", str(self.texts)] if self.reads else []),
                 *(["--out", str(submission[0])] if submission else [])]
        inputs = [self.split, fusion, *files, *([self.texts] if self.reads else [])]
        return Stage("submit", words, inputs, [report / "report.html", *submission])

    def classifier(self, names: list[str], fused: Path) -> list[Stage]:
        """The networks that are served: trained on all folds, exported, and weighed by predictions of those of the folds."""
        found, given = [], {"image": [], "text": []}
        for name in names:
            run = self.out / "runs" / f"{name}_all"
            student = [key.format(fused=fused) for key in STUDENT] if self.others else []
            found += [self.train(f"train {name} all", name, run, ["fold=-1", *student], (fused,) if self.others else ()),
                      Stage(f"export {name}", ["onnx_export.py", str(run)], [run / "model.pt", run / "run.json"],
                            [run / "model.onnx"])]
            given[MODELS[name].kind].append(run)
        fusion, out = self.out / "served.json", self.out / "classifier"
        words = [word for kind, runs in given.items() if runs for word in (f"--{kind}", *map(str, runs))]
        written = [out / f"{short}.onnx" for short in file_names([MODELS[name].kind for name in names])]
        return [*found, self.tune("tune served", names, fusion),
                Stage("classifier", ["-m", "adverts", "classifier", *words, "--fusion", str(fusion), "--out", str(out)],
                      [fusion, *(run / "model.onnx" for runs in given.values() for run in runs)],
                      [out / "fusion.json", *written])]


def results(fusion: dict) -> str:
    """A line for each model and for what is used: accuracy out of fold and, where labels are known, on test images."""
    scores, choice = fusion["scores"], fusion["choice"]
    names = [model["name"] for model in fusion["models"]]
    rows = [("", "out of fold", "test")] + [
        (f"{name}{' (used)' if name == choice else ''}", f"{scores[name]['accuracy']:.3f}",
         f"{scores[name]['test']['accuracy']:.3f}" if scores[name]["test"] else "")
        for name in dict.fromkeys([*names, choice])]
    wide = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:{wide}}  {fold:>11}  {test:>5}".rstrip() for name, fold, test in rows)


def chosen_models(given: list[str]) -> list[str]:
    """The models to use. Raises UserError for one that is not known, and where a package is missing."""
    names = list(dict.fromkeys(given)) or [name for name, model in MODELS.items() if model.default]
    if unknown := [name for name in names if name not in MODELS]:
        raise UserError(printable(f"--models {unknown[0]}: not known; choose from {', '.join(MODELS)}"))
    texts = [name for name in names if MODELS[name].kind == "text"]
    if texts and not importlib.util.find_spec("rapidocr"):
        raise UserError(f"{texts[0]} needs the text in the images, which rapidocr reads, and it is missing; pip install "
                        "rapidocr, or give --models thumbnail ads_small")
    return names


def given_keys(given: list[str], names: list[str]) -> dict[str, list[str]]:
    """{model: keys of its training} of words like `ads_small.epochs=3`."""
    found = {}
    for word in given:
        name, dot, key = word.partition(".")
        if not dot or "=" not in key or name not in names or not MODELS[name].trained:
            raise UserError(printable(f"--set {word}: give MODEL.KEY=VALUE with a network that is trained here, such as "
                                      "ads_small.epochs=3"))
        if key.partition("=")[0] in SET_HERE:
            raise UserError(printable(f"--set {word}: {key.partition('=')[0]} is set here for each training; remove it, or "
                                      "call train_v2.py"))
        found.setdefault(name, []).append(key)
    return found


def main(arguments=None):
    parser = Parser(prog="python -m adverts run", description=__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for all that is made")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(MODELS)} (default: "
                        f"{' '.join(name for name, model in MODELS.items() if model.default)})")
    parser.add_argument("--set", nargs="+", default=[], metavar="MODEL.KEY=VALUE", help="keys of a network's training, such "
                        "as ads_small.epochs=3")
    parser.add_argument("--quick", action="store_true", help="three folds and a few steps of training: to see that all "
                        "stages work; the accuracy is poor")
    add_options(parser)
    args = parser.parse_args(arguments)
    check_options(args)
    names = chosen_models(args.models)
    keys, out = given_keys(args.set, names), Path(args.out)
    if args.quick and args.folds is None:
        args.folds = QUICK_FOLDS
    with alone(out):
        run_all(args, names, keys, out)


def run_all(args, names: list[str], keys: dict[str, list[str]], out: Path) -> None:
    """All stages. names: of the models; keys: {model: further keys of its training}."""
    images = {name: os.path.join(args.data, name) for name in list_images(args.data)}
    data_digest = files_digest({name: path for name, path in images.items() if os.path.isfile(path)})
    stages, began = Stages(out), time.monotonic()
    tables = [Path(table) for table in (args.csv, *args.test) if table and os.path.isfile(table)]
    stages.run(Stage("split", ["-m", "adverts", "split", "--data", args.data, "--out", str(out / "split.csv"),
                               *split_arguments(args)], [data_digest, *tables], [out / "split.csv"]))
    plan = Plan(args, out, read_split(out / "split.csv"), data_digest, names, keys).stages()
    waiting = [stage for stage in plan if not stages.done(stage)]
    print(f"{len(plan)} stages, about {duration(sum(stage.seconds for stage in waiting))} for {len(waiting)} of them on "
          f"{available_cores()} cores", flush=True)
    for number, stage in enumerate(plan, 1):
        stages.run(stage, f"[{number}/{len(plan)}] ")
    print(f"\n{results(read_fusion(out / 'fusion.json'))}\n")
    made = [path for path in ("submission.csv", "report/report.html", "classifier") if (out / path).exists()]
    print(printable(f"{out}: {', '.join(made)}; {duration(time.monotonic() - began)}"))
