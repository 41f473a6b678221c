"""A daemon as a process: each way out of it ends within the limit, and an orderly stop is left alone."""

import signal
import subprocess
import sys

_DAEMON = """
import sys, time, trio, trio.testing
from qnode.errors import StoreUnusable
from qnode.operate.daemon import StopLimit, run_until_told

way = sys.argv[1]

async def fail():
    sys.stdin.readline()
    raise StoreUnusable("the anchor cannot be written")

async def run(nursery, hangups):
    if way not in ("nothing hangs", "the end of the store hangs"):
        nursery.start_soon(trio.to_thread.run_sync, time.sleep, 300)  # a call that nobody can cancel
    await trio.testing.wait_all_tasks_blocked()
    print("ready", flush=True)
    if way == "an error":
        nursery.start_soon(fail)
    await trio.sleep_forever()

with StopLimit("node", 60.0 if way == "nothing hangs" else 0.2, "a disk hangs") as limit:
    try:
        run_until_told(run, limit, stop_at_eof=way == "the end of standard input")
    finally:
        if way == "the end of the store hangs":
            time.sleep(300)
print("stopped")
"""


def test_every_way_out_of_a_daemon_ends_within_its_limit_though_a_call_does_not() -> None:
    ways = (
        "a signal",
        "the end of standard input",
        "an error",
        "the end of the store hangs",
        "nothing hangs",
    )
    children = {
        way: subprocess.Popen(
            [sys.executable, "-c", _DAEMON, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for way in ways
    }
    for way, child in children.items():
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        if way in ("the end of standard input", "an error"):
            assert child.stdin is not None
            child.stdin.close()
        else:
            child.send_signal(signal.SIGTERM)
    said = {}
    for way, child in children.items():
        with child:
            assert child.stdout is not None
            said[way] = child.stdout.read()
    assert {way: child.returncode for way, child in children.items()} == {
        **dict.fromkeys(ways, 1),
        "nothing hangs": 0,
    }
    for way in ways:
        forced = "node.stop_forced" in said[way] and "not stopped within 0.2 s: a disk hangs" in said[way]
        assert forced != (way == "nothing hangs"), said[way]
    assert "node.stopping" in said["the end of standard input"]
    assert "end of standard input" in said["the end of standard input"]
    assert "SIGTERM" in said["a signal"]
    assert said["nothing hangs"].endswith("stopped\n")
