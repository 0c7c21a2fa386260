"""The load of benchmarks/gateway.py in smaller numbers: nothing is refused, dropped or broken off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.gateway import Amount, creates, crowd, model_starts, running, starts

SOME = Amount(runs=5, starts=30, creates=1500, pollers=300, streams=50, seconds=10)


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
