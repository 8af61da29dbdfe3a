"""Flat Python configs: `base.py` states every key, a config file states what differs, `key=value` overrides both.

    cfg = load_config("configs/lcnet_cos", ["batch_size=1024", "data=photos,scans:8"])
"""
import difflib
import json
import math
import runpy
from pathlib import Path

from easydict import EasyDict

from inference.errors import UserError, first_line
from inference.image import MAX_INPUT

FOLDER = Path(__file__).resolve().parent
CHOICES = {
    "augment": ("none", "reference", "strong"),
    "head": ("flatten", "gap", "squeeze"),
    "norm": ("ln", "bn", "lbn"),
    "margin": ("cosface", "arcface", "combined", "softmax"),
    "schedule": ("polynomial", "cosine", "constant"),
    "centres_optimizer": ("sgd", "adamw"),
    "precision": ("fp32", "bf16"),
    "float32_matmul_precision": ("highest", "high", "medium"),
    "device": ("auto", "cpu", "cuda"),
    "expansion": (1, 8, 24),
}
AT_LEAST_ONE = ("batch_size", "accumulate", "epochs", "log_every", "keep_checkpoints")
NOT_NEGATIVE = ("lr", "weight_decay", "clip", "s", "max_steps", "centres_lr", "centres_momentum",
                "centres_weight_decay", "num_workers", "save_every", "save_minutes", "eval_every", "interclass",
                "max_skipped", "stall_minutes")
FRACTIONS = ("warmup", "margin_warmup")
MAX_EMBEDDING = 8192  # what is larger is a slip, or meant to fill the memory of whoever opens a stranger's run
# Beside the type of its default, a key may hold these.
ALSO = {"pretrained": (str,), "cache": (str,), "m": (list,), "data": (str,), "resume": (bool,)}


def find_config(path: str) -> Path:
    """The file behind `configs/lcnet_cos`, `lcnet_cos.py` or a path of one's own, from whatever folder one stands in."""
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
    """Resolve base.py + the file `path` + `key=value` overrides. Raises UserError naming the key that is wrong."""
    file = find_config(path)
    base = _assignments(FOLDER / "base.py")
    values = dict(base)
    given = [(key, value, file.name) for key, value in _assignments(file).items()]
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"{item}: not a setting; write key=value")
        given.append((key, text, "the command line"))
    for key, value, source in given:
        if key not in base:
            near = difflib.get_close_matches(key, base, 1)
            raise UserError(f"{key}: no such key ({source}); " + (f"did you mean {near[0]}?" if near
                                                                  else "configs/base.py lists them all"))
        if source == "the command line":
            value = _parse(key, value, base[key])
        values[key] = _checked(key, value, base[key])
    cfg = EasyDict(values)
    _normalise(cfg, file.stem)
    return cfg


def save_config(cfg: EasyDict, folder: Path) -> None:
    """Write `folder/config.json`."""
    (folder / "config.json").write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> EasyDict:
    """The resolved config of the run in `folder`; JSON, so nothing is executed, and checked, as others may have made it."""
    file, base = Path(folder) / "config.json", _assignments(FOLDER / "base.py")
    if not file.is_file():
        raise UserError(f"{folder}: no config.json, so not the output folder of a run; "
                        "give the `output` folder of train_v2.py")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or "network" not in values:
            raise ValueError("not a config of this project")
        values = {key: _checked(key, value, base[key]) for key, value in values.items() if key in base}
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); give another run") from None
    return EasyDict({**base, **values})  # a key may be younger than the run


def _assignments(file: Path) -> dict:
    try:
        scope = runpy.run_path(str(file))
    except Exception as error:  # whatever a user's Python file may do wrong
        raise UserError(f"config {file.name}: {type(error).__name__}: {first_line(error)}") from None
    return {k: v for k, v in scope.items() if not k.startswith("_") and not hasattr(v, "__spec__")}


def _parse(key: str, text: str, default):
    if key == "data":
        return text
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if isinstance(default, str) or str in ALSO.get(key, ()):
        return text
    try:
        return json.loads(text) if type(default) is not float or text.startswith("[") else float(text)
    except ValueError:
        raise UserError(_wrong_type(key, text, default)) from None


def _checked(key: str, value, default):
    allowed = (type(default),) + ALSO.get(key, ())
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) not in allowed or type(value) is float and not math.isfinite(value):
        raise UserError(_wrong_type(key, value, default))
    if type(value) is list and not all(isinstance(item, str if key == "data" else (int, float)) for item in value):
        raise UserError(f"{key}={value}: must be a list of " + ("folders" if key == "data" else "numbers"))
    if key in CHOICES and value not in CHOICES[key]:
        near = difflib.get_close_matches(str(value), [str(c) for c in CHOICES[key]], 1)
        raise UserError(f"{key}={value}: not known; " + (f"did you mean {near[0]}? " if near else "")
                        + "choose from " + ", ".join(str(c) for c in CHOICES[key]))
    for keys, holds, says in ((AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
                              (NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
                              (FRACTIONS, lambda v: 0 <= v <= 1, "from 0 to 1"),
                              (("ema",), lambda v: 0 <= v < 1, "0 or more and below 1"),
                              (("sample_rate",), lambda v: 0 < v <= 1, "above 0 and at most 1"),
                              (("image_size",), lambda v: 32 <= v <= MAX_INPUT, f"from 32 to {MAX_INPUT}"),
                              (("embedding_size",), lambda v: 1 <= v <= MAX_EMBEDDING, f"from 1 to {MAX_EMBEDDING}")):
        if key in keys and not holds(value):
            raise UserError(f"{key}={value}: must be {says}")
    return value


def _wrong_type(key: str, value, default) -> str:
    return f"{key}={value}: must be {type(default).__name__}, such as {default!r} in configs/base.py"


def _normalise(cfg: EasyDict, name: str) -> None:
    """Bring the forms a key may be written in to the one the code reads."""
    if isinstance(cfg.data, str):
        whole = Path(cfg.data)
        cfg.data = [cfg.data] if whole.exists() else [part for part in cfg.data.split(",") if part]
    word = str(cfg.resume).lower()
    cfg.resume = {"true": "auto", "auto": "auto", "false": "false"}.get(word, cfg.resume)
    cfg.output = cfg.output or str(Path("work_dirs") / name)
    if (cfg.margin == "combined") != isinstance(cfg.m, list) or isinstance(cfg.m, list) and len(cfg.m) != 3:
        raise UserError(f"m={cfg.m}: margin={cfg.margin} takes "
                        + ("a list [m1, m2, m3]" if cfg.margin == "combined" else "one number"))
    if cfg.accumulate > cfg.batch_size:
        raise UserError(f"accumulate={cfg.accumulate}: more micro-batches than images in a batch_size={cfg.batch_size}")
