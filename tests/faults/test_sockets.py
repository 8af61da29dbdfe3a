from tests.faults.sockets import flood, verdict


def test_idle_sockets_and_more_than_there_are_places(tmp_path):
    """The short form of `python -m tests.faults.sockets`."""
    found = flood(tmp_path, connections=300, workers=2, requests=50)
    found["memory"] -= 16 << 20  # of the requests, whatever the number of sockets
    assert verdict(found, 300, share=50) == []  # the slowest of two hundred times are another program's
    assert found["refused"] >= 30
