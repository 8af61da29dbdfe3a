"""--help of the programs without options: usage and examples, and nothing starts. In process, so that it costs no import."""
import importlib

import pytest


@pytest.mark.parametrize("module, program", [("backbones.__main__", "backbones"), ("dataset", "dataset"),
                                             ("tests.faults.__main__", "tests.faults"), ("tests.exactness",) * 2])
def test_help_shows_usage_and_examples(module, program, capfd):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["--help"])
    said = capfd.readouterr()
    assert end.value.code == 0 and said.err == "" and said.out.startswith(f"usage: python -m {program} ")
    assert f"\n    python -m {program}" in said.out and said.out.endswith("show this help message and exit\n")
