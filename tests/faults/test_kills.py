from tests.faults.kills import kill_rounds


def test_killed_runs_go_on(tmp_path):
    """The short form of `python -m tests.faults.kills`."""
    made = kill_rounds(6, 1, tmp_path)
    assert made["kills"] == 6 and made["changes of ranks"] > 0 and made["runs"] > 1
