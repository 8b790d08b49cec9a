"""What the scheduler promises, on a real model: bench/scheduling.c and tests/tools/soak_tool.c. Exact, in virtual
time, the same is in tests/unit/engine/pacing_test.c; here bounds are wide enough for a machine that others share."""
import json
import subprocess
import time

import pytest


@pytest.mark.parametrize("scenario", ["first-token", "shares", "prefix", "gaps"])
def test_promises_hold(realm, smollm2, scenario):
    # 2.5: a first token within 2.25 x of alone, shares within 7.5 %, a repeated prompt under 12.5 %.
    end = time.monotonic() + 300
    while True:  # others may have the cores at any one moment, hardly always; what is broken is so always
        done = subprocess.run([realm.parent / "bench" / "bench_scheduling", smollm2, "--only", scenario, "--slack", "2.5",
                               "--long", "300"], capture_output=True, text=True, timeout=600)
        if done.returncode == 0:
            break
        assert done.returncode == 1 and time.monotonic() < end, done.stdout + done.stderr


def test_random_load_loses_nothing(realm, smollm2):
    for seconds in (15, 60, 110):  # a slow machine needs longer for as much
        done = subprocess.run([realm.parent / "tests" / "tools" / "soak_tool", smollm2, str(seconds)],
                              capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        seen = json.loads(done.stdout)
        if seen["ok"] > 20 and seen["preemptions"] > 0:
            break
    else:
        pytest.fail(f"too little happened: {seen}")
