"""Flat Python configs: `base.py` and the task state the keys, a config file what differs, `key=value` overrides both.

    cfg = load_config("configs/lcnet_cos", ["batch_size=1024", "data=photos,scans:8"])
    network, cfg = load_run("work_dirs/lcnet_cos")      # what a finished run published
"""
import difflib
import json
import runpy
from pathlib import Path

from easydict import EasyDict
from torch import nn

from backbones import load_weights, read_weights
from engine.keys import Key
from inference.errors import UserError, first_line
from tasks import get_task

FOLDER = Path(__file__).resolve().parent


def keys_of(task: str) -> dict[str, Key]:
    """The keys of a run of this task: those of the loop, then the task's own. Raises UserError for an unknown task."""
    loop = {name: value for name, value in runpy.run_path(str(FOLDER / "base.py")).items() if isinstance(value, Key)}
    return {**loop, **get_task(task).defaults}


def find_config(path: str) -> Path:
    """The file of `configs/lcnet_cos`, `lcnet_cos.py` or another path, whatever the current folder is."""
    given = Path(path)
    if not given.name:
        raise UserError(f"config {path}: not a file; configs/ has: " + ", ".join(names()))
    for name in (given, given.with_name(given.name + ".py")):
        for candidate in (name, FOLDER.parent / name, FOLDER / name):
            if candidate.is_file():
                return candidate.resolve()
    near = difflib.get_close_matches(given.stem, names(), 1)
    hint = f"did you mean configs/{near[0]}?" if near else "configs/ has: " + ", ".join(names())
    raise UserError(f"config {path}: no such file; {hint}")


def names() -> list[str]:
    """Names of the configs that come with the project."""
    return sorted(f.stem for f in FOLDER.glob("*.py") if f.stem not in ("__init__", "base"))


def load_config(path: str, overrides=()) -> EasyDict:
    """Resolve the defaults, the file `path` and `key=value` overrides. Raises UserError naming a key that is wrong."""
    file = find_config(path)
    given = [(key, value, file.name) for key, value in _assignments(file).items()]
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"{item}: not a setting; write key=value")
        given.append((key, text, "the command line"))
    keys = keys_of(dict((key, value) for key, value, _ in given).get("task", "registration"))
    values = {name: key.default for name, key in keys.items()}
    for name, value, source in given:
        if name not in keys:
            near = difflib.get_close_matches(name, keys, 1)
            raise UserError(f"{name}: no such key ({source}); " + (f"did you mean {near[0]}?" if near else
                            "python train_v2.py CONFIG --help lists them all"))
        if source == "the command line" and isinstance(value, str):
            value = keys[name].parse(name, value)
        values[name] = keys[name].checked(name, value)
    cfg = EasyDict(values)
    _normalize(cfg, file.stem)
    get_task(cfg.task).check_config(cfg)
    return cfg


def save_config(cfg: EasyDict, folder: Path) -> None:
    """Write `folder/config.json`."""
    (folder / "config.json").write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> EasyDict:
    """The resolved config of the run in `folder`; JSON, so nothing is executed, and checked, as others may have made it."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no config.json, so not the output folder of a run; "
                        "give the `output` folder of train_v2.py")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not {"task", "network"} & set(values):
            raise ValueError("not a config of this project")
        keys = keys_of(values.get("task", "registration"))  # runs older than the key had one task
        values = {name: key.checked(name, values.get(name, key.default)) for name, key in keys.items()}
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); give another run") from None
    return EasyDict(values)


def read_info(folder) -> dict:
    """What the run recorded of its data and length, `run.json`; {} where that is missing or not what a run writes."""
    try:
        info = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{folder}/run.json: cannot be read as JSON; write it again or remove it") from None
    return info if isinstance(info, dict) else {}


def load_run(folder) -> tuple[nn.Module, dict]:
    """What a run published, a network in eval mode on CPU, and the run's config. Raises UserError for what is no run."""
    folder = Path(folder)
    cfg = read_config(folder)
    if not (folder / "model.pt").is_file():
        raise UserError(f"{folder}: no model.pt yet; let train_v2.py finish, or give it another output folder")
    try:
        info = read_info(folder)
    except UserError:  # most networks follow from the config alone; a task that needs more says so
        info = {}
    network = get_task(cfg.task).restore(cfg, info)
    load_weights(network, read_weights(folder / "model.pt"), folder / "model.pt")
    return network.eval(), cfg


def _assignments(file: Path) -> dict:
    try:
        scope = runpy.run_path(str(file))
    except Exception as error:  # whatever a user's Python file may do wrong
        raise UserError(f"config {file.name}: {type(error).__name__}: {first_line(error)}") from None
    plain = {name: value.default if isinstance(value, Key) else value for name, value in scope.items()}  # of base.py
    return {name: value for name, value in plain.items()
            if not name.startswith("_") and value is not Key and not hasattr(value, "__spec__")}


def _normalize(cfg: EasyDict, name: str) -> None:
    """Bring the forms a key may be written in to the one the code reads."""
    word = str(cfg.resume).lower()
    cfg.resume = {"true": "auto", "auto": "auto", "false": "false"}.get(word, cfg.resume)
    cfg.output = cfg.output or str(Path("work_dirs") / name)
    if cfg.ema and cfg.swa:
        raise UserError(f"ema={cfg.ema:g}, swa={cfg.swa:g}: two averages of the weights; set one of them to 0")
    if cfg.accumulate > cfg.batch_size:
        raise UserError(f"accumulate={cfg.accumulate}: more micro-batches than samples in a batch_size={cfg.batch_size}")
