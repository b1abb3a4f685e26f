import os
import signal
import subprocess
import sys
import time

import pytest
from gang_jobs import alive

from thinwire.cli.gang import Gang
from thinwire.errors import ConfigError, ThinwireError

pytestmark = pytest.mark.network


def test_a_gang_talks_in_one_group_of_single_threaded_workers(jobs):
    with Gang(3, jobs("threads_and_sum"), {"a": [1, 2]}) as gang:
        said = {message["rank"]: message for message in gang.messages()}
    assert said.keys() == {0, 1, 2}
    assert {(m["total"], m["threads"], m["args"]["a"][1]) for m in said.values()} == {(3.0, 1, 2)}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("rank_1_divides_by_zero", "ZeroDivisionError: division by zero"),
        ("rank_1_is_killed", "killed by SIGKILL"),
    ],
)
def test_a_worker_that_dies_ends_the_gang_with_its_rank_and_last_line(jobs, job, words):
    with (
        pytest.raises(ThinwireError, match=f"worker 1 of 3 failed: {words}"),
        Gang(3, jobs(job), {}) as gang,
    ):
        list(gang.messages())
    assert not any(alive(pid) for pid in gang.pids)
    assert all(process.returncode is not None for process in gang.processes)


def test_a_worker_that_cannot_find_its_job_says_so():
    with (
        pytest.raises(ThinwireError, match="No module named 'no_such_module'"),
        Gang(1, "no_such_module:work", {}) as gang,
    ):
        list(gang.messages())


def test_leaving_a_gang_early_ends_workers_even_those_that_are_stopped(jobs):
    with Gang(2, jobs("sleep"), {}) as gang:
        talk = gang.messages()
        next(talk), next(talk)
        os.kill(gang.pids[1], signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert not any(alive(pid) for pid in gang.pids)


def test_workers_whose_parent_is_killed_end_by_themselves(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = f"""if True:
        from thinwire.cli.gang import Gang
        with Gang(2, {jobs("sleep")!r}, {{}}) as gang:
            talk = gang.messages()
            next(talk), next(talk)
            print(*gang.pids, flush=True)
            next(talk)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(alive(pid) for pid in pids)
        parent.kill()
    deadline = time.monotonic() + 2
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def test_a_gang_of_none_is_refused():
    with pytest.raises(ConfigError, match="at least one worker"):
        Gang(0, "gang_jobs:sleep", {})
