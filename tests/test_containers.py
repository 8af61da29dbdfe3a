"""The Dockerfiles: what they promise, and, where buildah is installed, the server's image built, started and asked."""
import fnmatch
import os
import re
import shutil
import subprocess

import pytest

from tests.helpers.programs import ROOT

FOLDER = ROOT / "containers"
FILES = sorted(FOLDER.glob("Dockerfile.*"))


def instructions(path):
    """[(instruction, arguments)], lines that go on joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_there_is_one_for_each_use():
    assert [path.suffix for path in FILES] == [".export", ".serve", ".train"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_container_is_not_root_and_has_no_secrets(path):
    found = instructions(path)
    last = {name: value for name, value in found}
    assert last["USER"] == "10001" and "HEALTHCHECK" in last and "ENTRYPOINT" in last
    bases = [value.split()[0] for name, value in found if name == "FROM"]
    assert set(bases) <= {"debian:bookworm-slim", "${TRAIN}"}
    assert not [value for name, value in found if name in ("ARG", "ENV") and re.search("(?i)key|token|secret|passw", value)]
    assert not [name for name, _ in found if name == "ADD"]
    for name, value in found:                   # what lists packages leaves none of its lists behind, or is not in the image
        if "apt-get install" in value and name == "RUN":
            assert "--no-install-recommends" in value
    stage = found[max(place for place, (name, _) in enumerate(found) if name == "FROM"):]
    assert all("rm -rf /var/lib/apt/lists" in value for name, value in stage if "apt-get update" in value)


def test_what_is_copied_exists_and_is_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in FILES:
        for name, value in instructions(path):
            if name == "COPY" and not value.startswith("--from"):
                for source in value.split()[:-1]:
                    assert (ROOT / source).exists()
                    assert source == "." or any(fnmatch.fnmatch(source, pattern) for pattern in kept), source
    assert all(list(ROOT.glob(pattern)) for pattern in kept), "a name in .dockerignore that there is not"
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert rooms <= set(kept), f"add {rooms - set(kept)} to .dockerignore"


def test_the_script_refuses_in_one_line(tmp_path):
    for words, says in (([], "serve, train or export"), (["srve"], "srve"), (["serve"], "not installed")):
        done = subprocess.run(["/bin/bash", FOLDER / "build.sh", *words], capture_output=True, text=True,
                              env={"PATH": str(programs(tmp_path))})
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = subprocess.run(["/bin/bash", FOLDER / "build.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "containers/build.sh serve" in done.stdout and "#" not in done.stdout


def programs(tmp_path):
    """A folder with the few programs that the script needs to begin, and not buildah."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("dirname", "sed"):
        if not (folder / name).exists():
            (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.mark.skipif(not (shutil.which("buildah") and shutil.which("mmdebstrap")) or os.geteuid() != 0,
                    reason="needs buildah, mmdebstrap and root")
@pytest.mark.skipif(bool(os.environ.get("CI")), reason="takes two minutes and 3 GB")
def test_the_image_of_the_server_is_built_and_serves():
    done = subprocess.run([FOLDER / "build.sh", "serve"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "passport_1000021.jpg: passport 0.9" in done.stdout and "== done" in done.stderr
