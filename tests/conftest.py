import os
import tempfile

# One thread for each process: the tests are small, and spinning threads that share two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The cache of decoded images, of the commands that the tests start too, is no business of the user's own.
_cache = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _cache.name

import torch  # noqa: E402, reads the number of threads

# Without a GPU Triton's kernels run in its interpreter, which must be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def same_threads():
    """A command that a test runs in this process takes the threads it wants, and the last bits of sums depend on them."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def folder(tmp_path):
    """A folder of seven images."""
    from tests.helpers.runs import make_images
    return make_images(tmp_path / "data")
