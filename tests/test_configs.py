import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import load_config, names, read_config, save_config
from inference.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# every row of the reference's table, and ours
ROWS = {"lcnet_arc", "lcnet_softmax", "lcnet_cos", "lcnet_cos_scratch", "lcnet_cos_squeeze", "lcnet_cos_bn",
        "lcnet_cos_f128_r96", "lcnet_cos_gap", "efficientnet_b0_cos", "lcnet_cos_squeeze_imagenet",
        "lcnet_cos_squeeze_lbn", "demo", "lcnet_strong"}


def test_every_row_of_the_table_has_a_config():
    assert ROWS <= set(names())
    for name in names():
        load_config(name)


@pytest.mark.parametrize("path", ["configs/lcnet_cos", "configs/lcnet_cos.py", "lcnet_cos",
                                  str(ROOT / "configs" / "lcnet_cos.py")])
def test_a_config_is_found_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(path).sample_rate == 0.3


def test_a_config_of_ones_own_and_overrides(tmp_path):
    (tmp_path / "mine.py").write_text("from configs.lcnet_cos import *\nbatch_size = 64\n_factor = 3\n")
    cfg = load_config(str(tmp_path / "mine"), ["lr=1", "data=a,b:8", "compile=true", "pretrained=w.pt", "resume=AUTO"])
    assert (cfg.batch_size, cfg.lr, cfg.data, cfg.compile, cfg.pretrained) == (64, 1.0, ["a", "b:8"], True, "w.pt")
    assert isinstance(cfg.lr, float) and cfg.output == str(Path("work_dirs") / "mine") and cfg.resume == "auto"


def test_the_cache_is_on_off_or_a_folder():
    assert [load_config("lcnet_cos", given).cache for given in ([], ["cache=False"], ["cache=a/b"])] == [True, False, "a/b"]


def test_a_folder_with_a_comma_is_one_folder(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert load_config("lcnet_cos", [f"data={tmp_path / 'a,b'}"]).data == [str(tmp_path / "a,b")]


@pytest.mark.parametrize("override, says", [
    ("bach_size=3", "did you mean batch_size"),
    ("batch_size=x", "must be int"),
    ("batch_size=1.5", "must be int"),
    ("lr=fast", "must be float"),
    ("compile=1", "must be bool"),
    ("norm=lm", "ln, bn, lbn"),
    ("margin=cosfaces", "cosface"),
    ("sample_rate=0", "above 0"),
    ("sample_rate=1.1", "at most 1"),
    ("expansion=7", "1, 8, 24"),
    ("batch_size=0", "at least 1"),
    ("m=[1,2]", "one number"),
    ("margin=combined", "a list"),
    ("lr=Infinity", "must be float"),
    ("nonsense", "key=value"),
    ("accumulate=1000", "micro-batches"),
])
def test_a_wrong_setting_is_named(override, says):
    with pytest.raises(UserError, match=says) as error:
        load_config("lcnet_cos", [override])
    assert "\n" not in str(error.value) and override.split("=")[0] in str(error.value)


def test_a_wrong_config_file_is_named(tmp_path):
    for path in (".", ""):
        with pytest.raises(UserError, match="not a file"):
            load_config(path)
    (tmp_path / "list.py").write_text("data = [1]")
    with pytest.raises(UserError, match="list of folders"):
        load_config(str(tmp_path / "list.py"))
    with pytest.raises(UserError, match="did you mean configs/lcnet_cos"):
        load_config("lcnet_coss")
    (tmp_path / "bad.py").write_text("lr = 1 +")
    with pytest.raises(UserError, match="bad.py: SyntaxError"):
        load_config(str(tmp_path / "bad.py"))


def test_the_resolved_config_is_saved_and_read_back(tmp_path):
    cfg = load_config("demo", ["batch_size=32"])
    save_config(cfg, tmp_path)
    assert read_config(tmp_path) == cfg
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 32
    with pytest.raises(UserError, match="no config.json"):
        read_config(tmp_path / "elsewhere")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a config of this project"):
        read_config(tmp_path)


def test_numbers_may_be_written_as_people_do():
    cfg = load_config("lcnet_cos", ["sample_rate=.3", "lr=1.", "weight_decay=1e-4", "margin=combined", "m=[1, 0.2, 0.1]"])
    assert (cfg.sample_rate, cfg.lr, cfg.weight_decay, cfg.m) == (0.3, 1.0, 1e-4, [1, 0.2, 0.1])
    with pytest.raises(UserError, match="list of numbers"):
        load_config("lcnet_cos", ["margin=combined", 'm=["a", 1, 2]'])


def test_a_typo_ends_the_run_at_once_with_one_line():
    done = subprocess.run([sys.executable, ROOT / "train_v2.py", "configs/lcnet_cos", "bach_size=3"],
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: bach_size: no such key (the command line); did you mean batch_size?"
