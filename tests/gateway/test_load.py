"""The load of benchmarks/gateway.py in smaller numbers: nothing is refused, dropped or broken off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gateway import Amount, creates, crowd, model_starts, running, starts
from tests.conftest import ROOT

SOME = Amount(runs=5, starts=30, creates=1500, pollers=300, streams=50, seconds=10)


def test_more_connections_than_the_usual_limit_of_open_files() -> None:
    code = "from gateway.front import *; open_more_files(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    run = ["sh", "-c", 'ulimit -Sn 100; exec "$0" -c "$1"', sys.executable, code]
    assert int(subprocess.run(run, capture_output=True, check=True, cwd=ROOT).stdout) > 1024


@pytest.mark.soak
def test_many_at_once(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        await gateway.register()
        assert len(await starts(gateway, SOME)) == SOME.starts
        seen = await crowd(gateway, SOME)
        assert dict(seen.errors) == {}
        assert seen.done == SOME.streams
        assert len(seen.polls) >= SOME.pollers
        await creates(gateway, SOME)

    with running(tmp_path) as gateway:
        asyncio.run(all_of_it())
    assert gateway.answers.keys() == {200, 201}
    assert gateway.answers[201] == SOME.starts + SOME.streams + SOME.creates


@pytest.mark.soak
def test_a_model_is_started_by_each_call() -> None:
    assert len(model_starts(SOME)) == SOME.runs
