"""The text of images: read by rapidocr, kept by content and settings; stopped, killed, resumed."""
import functools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import time
import tracemalloc

import cv2
import numpy as np
import pytest

from adverts.ocr import Cache, duration, main
from adverts.texts import Segment, read_segments, read_texts, write_texts
from inference.errors import UserError
from inference.segments import make_reader, settings
from tests.helpers.programs import run_without
from tests.helpers.texts import levels, make_failing, make_fake, make_nothing, processes, read, read_slowly


def advert(*words, size=(200, 320)):
    """A white image with a word on each line, black: the first at the top."""
    image = np.full((*size, 3), 255, np.uint8)
    for line, word in enumerate(words):
        cv2.putText(image, word, (20, 60 + 70 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (0, 0, 0), 3, cv2.LINE_AA)
    return image


def flat(folder, *numbers):
    """Flat images of the gray levels `numbers`, named after them."""
    folder.mkdir(exist_ok=True)
    for level in numbers:
        cv2.imwrite(str(folder / f"{level:03}.png"), np.full((16, 16, 3), level, np.uint8))
    return folder


@pytest.fixture(scope="module")
def reader():
    return make_reader(side=0)


def test_text_is_read_in_order_without_a_network(reader, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    found = reader(advert("HELLO", "WORLD"))
    assert [segment.text for segment in found] == ["HELLO", "WORLD"]
    for line, segment in enumerate(found):
        x, y = np.mean(segment.box, 0)
        assert 0.5 < segment.score <= 1 and 60 < x < 120 and abs(y - (45 + 70 * line)) < 10
        assert all(type(value) is int for point in segment.box for value in point)


@pytest.mark.parametrize("shape", [(40, 40), (8, 8), (9, 900), (900, 9)])
def test_an_image_without_text_has_no_segments(reader, shape):
    assert reader(np.full((*shape, 3), 255, np.uint8)) == []


def test_small_print_is_found_when_enlarged(reader):
    small = cv2.resize(advert("HELLO", "WORLD"), None, fx=.12, fy=.12, interpolation=cv2.INTER_AREA)
    found = make_reader(side=320)(small)
    assert [segment.text for segment in reader(small)] != ["HELLO", "WORLD"] == [segment.text for segment in found]
    assert np.max([segment.box for segment in found]) <= small.shape[1]  # boxes are in the image's own pixels


def test_command(tmp_path, capsys):
    data = tmp_path / "data"
    (data / "b").mkdir(parents=True)
    cv2.imwrite(str(data / "b/text.png"), advert("FRESH"))
    cv2.imwrite(str(data / "a.png"), advert())
    shutil.copy(data / "b/text.png", data / "copy.png")
    (data / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    words = ["--data", str(data), "--cache", str(tmp_path / "c.sqlite"), "--out", str(tmp_path / "t.jsonl")]
    main([*words, "--processes", "1", "--side", "0"])
    said = capsys.readouterr()
    assert "4 images, 2 with text, 1 could not be used" in said.out and "3 to read" in said.err and "bad.jpg: " in said.err
    assert read_texts(tmp_path / "t.jsonl") == {"a.png": [], "b/text.png": ["FRESH"], "bad.jpg": [], "copy.png": ["FRESH"]}
    errors = [json.loads(line).get("error", "") for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [bool(error) for error in errors] == [False, False, True, False]
    split = tmp_path / "s.csv"
    split.write_text("file,label,group,role,fold\ncopy.png,a,1,train,0\na.png,b,2,train,1\nb/text.png,a,3,train,1\n"
                     "gone.png,,4,test,-1\n")
    main([*words, "--split", str(split), "--side", "0"])
    said = capsys.readouterr()
    assert list(read_texts(tmp_path / "t.jsonl")) == ["copy.png", "a.png", "b/text.png", "gone.png"]
    assert "to read" not in said.err and "gone.png: " in said.err  # all that can be read is in the cache
    (data / "a.png").unlink(), (data / "b/text.png").unlink(), (data / "copy.png").unlink()
    with pytest.raises(UserError, match="none of the 1 images can be used; the first: bad.jpg: "):
        main(words)


def test_an_image_is_read_once_whatever_its_name(tmp_path):
    data, log = flat(tmp_path / "data", 1, 2, 3), tmp_path / "log"
    cache, fake = Cache(tmp_path / "c.sqlite", "same"), functools.partial(make_fake, log)
    assert read(data, cache, fake) == {"001.png": "1", "002.png": "2", "003.png": "3"}
    os.rename(data / "002.png", data / "moved.png")
    shutil.copy(data / "001.png", data / "copy.png")
    shutil.copy(data / "003.png", data / "001.png")
    flat(data, 4)
    assert read(data, cache, fake) == {"001.png": "3", "003.png": "3", "004.png": "4", "copy.png": "1", "moved.png": "2"}
    assert sorted(levels(log)) == [1, 2, 3, 4]


def test_other_settings_read_anew(tmp_path):
    data, log = flat(tmp_path / "data", 1), tmp_path / "log"
    fake = functools.partial(make_fake, log)
    for name, count in (("one", 1), ("other", 2), ("one", 2), ("other", 2)):
        assert read(data, Cache(tmp_path / "c.sqlite", name), fake) == {"001.png": "1"}
        assert len(levels(log)) == count
    told = json.loads(settings(0))
    assert settings(0) != settings(736) and told["rapidocr"] and told["models"] and told["Det.box_thresh"] == 0.5


def test_a_killed_process_ends_the_command_and_loses_nothing(tmp_path):
    data, log = flat(tmp_path / "data", *range(1, 13)), tmp_path / "log"
    cache = Cache(tmp_path / "c.sqlite", "same")
    began = time.monotonic()
    with pytest.raises(UserError, match="has died.*run the command again"):
        read(data, cache, functools.partial(make_fake, log, 6, .02))
    assert time.monotonic() - began < 60
    kept = sqlite3.connect(cache.path).execute("select count(*) from texts").fetchone()[0]
    assert levels(log) == [1, 2, 3, 4, 5, 6] and kept == 5  # each is committed by itself
    assert list(read(data, cache, functools.partial(make_fake, log), processes=2).values()) == list(map(str, range(1, 13)))
    assert len(levels(log)) == 6 + 12 - 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_time_it_resumes(tmp_path, number):
    data, log = flat(tmp_path / "data", *range(1, 100)), tmp_path / "log"
    log.touch()
    program = multiprocessing.get_context("spawn").Process(target=read_slowly, args=(data, tmp_path / "c.sqlite", log))
    program.start()
    while program.is_alive() and len(levels(log)) < 10:
        time.sleep(.01)
    os.kill(program.pid, number)
    program.join(60)
    assert program.exitcode not in (0, None) and len(levels(log)) < 90
    readers, deadline = processes(log), time.monotonic() + 30
    while any(_runs(pid) for pid in readers):
        assert time.monotonic() < deadline, "the processes that read have not ended"
        time.sleep(.05)
    kept = sqlite3.connect(tmp_path / "c.sqlite").execute("select count(*) from texts").fetchone()[0]
    before = len(levels(log))
    found = read(data, Cache(tmp_path / "c.sqlite", "same"), functools.partial(make_fake, log), processes=2)
    assert list(found.values()) == list(map(str, range(1, 100)))
    assert len(levels(log)) == before + 99 - kept and before - kept <= 2 * 2  # what was under way is read again


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failure_of_the_reader_is_one_image_less(tmp_path):
    data = flat(tmp_path / "data", 1, 2)
    found = read(data, Cache(tmp_path / "c.sqlite", "same"), make_failing)
    assert found == {"001.png": "ok", "002.png": "the reader failed: KeyError: 'why'"}


def test_a_cache_that_is_something_else(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"this is no database " * 100)
    with pytest.raises(UserError, match="cannot be used as a cache"):
        Cache(tmp_path / "c.sqlite", "same")
    cache = Cache(tmp_path / "good.sqlite", "same")
    cache.put("digest", [])
    assert cache.known() == {"digest"} and cache.get("digest") == []
    with sqlite3.connect(cache.path) as db:
        db.execute("update texts set segments = '[{}]'")
    with pytest.raises(UserError, match="cannot be used as a cache"):
        cache.get("digest")


def test_a_full_disk_does_not_say_that_the_cache_is_to_be_removed(tmp_path):
    with Cache(tmp_path / "c.sqlite", "same") as cache:
        cache.put("one", [Segment("kept", .5, [[0, 1]] * 4)])
        cache._db.execute("pragma max_page_count = 4")
        with pytest.raises(UserError, match="full.*see that its disk has room.*run the command again") as error:
            for i in range(100):
                cache.put(str(i), [Segment("x" * 1000, .5, [[0, 1]] * 4)])
        assert "remove" not in str(error.value)
    with Cache(tmp_path / "c.sqlite", "same") as cache:
        assert [segment.text for segment in cache.get("one")] == ["kept"]


def test_a_reader_that_cannot_begin_is_one_line(tmp_path, capfd):
    with pytest.raises(UserError, match="text cannot be read: no model here"):
        read(flat(tmp_path / "data", 1, 2), Cache(tmp_path / "c.sqlite", "same"), make_nothing, processes=2)
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_no_image_is_told_and_not_waited_for(tmp_path):
    data = flat(tmp_path / "data", 1)
    os.mkfifo(data / "pipe.png")
    (data / "link.png").symlink_to(tmp_path / "nowhere")
    found = read(data, Cache(tmp_path / "c.sqlite", "same"), functools.partial(make_fake, tmp_path / "log"))
    assert found.pop("001.png") == "1"
    assert "not a regular file" in found["pipe.png"] and "No such file" in found["link.png"]


def test_texts_survive_their_file(tmp_path):
    segments = [Segment('say "hi"\n', .25, [[0, 0], [5, 0], [5, 3], [0, 3]]), Segment("广告 مرحبا", 1.0, [[-1, 2]] * 4)]
    texts = {"a b.jpg": segments, "é.jpg": []}
    write_texts(tmp_path / "t.jsonl", ((name, segments, "") for name, segments in texts.items()))
    assert read_segments(tmp_path / "t.jsonl") == texts
    assert read_texts(tmp_path / "t.jsonl") == {"a b.jpg": ['say "hi"\n', "广告 مرحبا"], "é.jpg": []}


def test_reading_texts_takes_no_more_memory_than_they_do(tmp_path):
    """The boxes of the segments, which are several times as large, are there for one image at a time."""
    rows = ((f"{i}.jpg", [Segment(f"{i} {j}", .5, [[i, 999 + j]] * 4) for j in range(8)], "") for i in range(500))
    write_texts(tmp_path / "t.jsonl", rows)
    read_texts(tmp_path / "t.jsonl")  # what is made once
    tracemalloc.start()
    texts = read_texts(tmp_path / "t.jsonl")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(texts) == 500 and peak < 1.5 * kept


@pytest.mark.parametrize("line", [
    "", "{", "[]", "{}", '{"id": 1, "segments": []}', '{"id": "b", "segments": 5}', '{"id": "a", "segments": []}',
    '{"id": "b", "segments": [{"text": 1, "score": 1, "box": [[0,0],[0,0],[0,0],[0,0]]}]}',
    '{"id": "b", "segments": [{"text": "t", "score": NaN, "box": [[0,0],[0,0],[0,0],[0,0]]}]}',
    '{"id": "b", "segments": [{"text": "t", "score": 1, "box": [[0,0],[0,0],[0,0]]}]}',
    '{"id": "b", "segments": [{"text": "t", "score": 1, "box": [[0,0],[0,0],[0,0],[Infinity,0]]}]}', "[" * 100_000, "\udcff",
])
def test_a_wrong_line_is_named(tmp_path, line):
    good = '{"id": "a", "segments": [{"text": "t", "score": 1, "box": [[0,0],[0,0],[0,0],[0,0]]}]}'
    path = tmp_path / "t.jsonl"
    path.write_bytes(f"{good}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"{path}: line [12] is not the text of an image") as error:
        read_texts(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options, message", [
    (["--side", "-1"], "give 0 to 2000 pixels"), (["--processes", "0"], "give at least 1"), ([], "no images below"),
])
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main(["--data", str(tmp_path), "--cache", str(tmp_path / "c"), "--out", str(tmp_path / "t"), *options])


def test_without_the_library_one_line_names_it(tmp_path):
    flat(tmp_path / "data", 1)
    done = run_without(["rapidocr"], "-m", "adverts", "ocr", "--data", tmp_path / "data", "--cache", tmp_path / "c.sqlite",
                       "--out", tmp_path / "t.jsonl")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install rapidocr" in done.stderr


@pytest.mark.parametrize("seconds, told", [(5.4, "5 s"), (89, "89 s"), (90, "2 min"), (3000, "50 min"), (9000, "2.5 h")])
def test_times_are_told_as_people_say_them(seconds, told):
    assert duration(seconds) == told
