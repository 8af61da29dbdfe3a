from tests.faults.kills import kill_rounds


def test_killed_runs_are_resumed(tmp_path):
    """The short form of `python -m tests.faults.kills`, with every kind of fault."""
    made = kill_rounds(4, 1, tmp_path, steps=24)
    assert made["kills"] == 4 and made["runs"] > 1 and made["changes of ranks"] > 0
    assert 0 < made["kills of all ranks"] < made["kills"] and made["damaged checkpoints"] > 0
