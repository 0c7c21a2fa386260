"""Webhooks, delivered out of a real store to a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret

from gateway import webhooks
from gateway.webhooks import PAUSES, new_key, sign
from tests.gateway.receiving import claimed, delivering, finished, new_job, new_store, receiver, settle

Answer = Callable[[int], tuple[int, dict[str, str]]]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.0,) * len(PAUSES))
    monkeypatch.setattr(webhooks, "INTERVAL", 0.01)


def test_the_known_answer() -> None:
    key, message = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = sign(key, message, 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_keys_are_split_as_the_clients_do() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    assert {len(key.split("_")) for key in keys} == {2}


def test_the_last_try_is_about_a_minute_after_the_end() -> None:
    assert sum(PAUSES) == 63


def test_the_official_validator_accepts_each_try(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver(lambda number: (500 if number < 3 else 200, {})) as hook, delivering(store) as courier:
        job = new_job(store, hook.url)
        finished(store)
        calls = hook.wait(3)
        settle(store)
    for call in calls:
        request = httpx.Request("POST", hook.url, headers=call.headers, content=call.body)
        Webhooks.validate(request=request, secret=WebhookSigningSecret(key=courier.key))
        assert json.loads(call.body) == {"id": job.id, "status": "succeeded"}
    assert len({call.headers["webhook-id"] for call in calls}) == 1


def test_it_gives_up_after_seven_tries(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver(lambda _: (503, {})) as hook, delivering(store):
        new_job(store, hook.url)
        finished(store)
        hook.wait(len(PAUSES) + 1)
        new_job(store, hook.url)
        finished(store)
        hook.wait(2 * len(PAUSES) + 2)
        settle(store)
    assert len(hook.calls) == 2 * len(PAUSES) + 2


def test_only_the_end_is_tried_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver(lambda number: (500 if number < 3 else 200, {})) as hook, delivering(store):
        new_job(store, hook.url, ("start", "completed"))
        job = claimed(store)
        store.report(job.id, job.fence, 0.0, status="processing")
        hook.wait(1)
        store.report(job.id, job.fence, 1.0, status="succeeded")
        calls = hook.wait(3)
    assert [json.loads(call.body)["status"] for call in calls] == ["processing", "succeeded", "succeeded"]


def test_a_receiver_that_comes_up_later_is_told(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver() as hook:
        gone = hook.url
    new_job(store, gone)
    finished(store)
    with delivering(store):
        threading.Event().wait(0.05)
    (waiting,) = store.due(1e12)
    assert waiting.tries > 0


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(tmp_path: Path, status: int) -> None:
    store = new_store(tmp_path)
    with receiver() as inside, receiver(lambda _: (status, {"Location": inside.url})) as hook, delivering(store):
        new_job(store, hook.url)
        finished(store)
        hook.wait(1)
        new_job(store, hook.url)
        finished(store)
        hook.wait(2)
        settle(store)
    assert inside.calls == []


def test_cookies_are_not_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver(lambda _: (200, {"Set-Cookie": "a=b"})) as hook, delivering(store):
        for number in (1, 2):
            new_job(store, hook.url)
            finished(store)
            hook.wait(number)
    assert all("cookie" not in call.headers for call in hook.calls)


def test_a_slow_receiver_holds_up_nobody_else(tmp_path: Path) -> None:
    store, free = new_store(tmp_path), threading.Event()

    def hang(_: int) -> tuple[int, dict[str, str]]:
        free.wait(30)
        return 200, {}

    with receiver(hang) as slow, receiver() as quick, delivering(store):
        for _ in range(40):
            new_job(store, slow.url)
            finished(store)
        slow.wait(webhooks.LANE)
        for _ in range(10):
            new_job(store, quick.url)
            finished(store)
        quick.wait(10)
        assert len(slow.calls) == webhooks.LANE
        free.set()
        slow.wait(40)
        settle(store)


def test_the_filter(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    asked: dict[str, tuple[str, ...]] = {
        "all": ("start", "output", "logs", "completed"),
        "usual": (),
        "logs": ("logs",),
    }
    seen = {}
    for name, events in asked.items():
        with receiver() as hook, delivering(store):
            new_job(store, hook.url, events)
            job = claimed(store)
            steps = [{"status": "processing"}, {"logs": "1"}, {"output": ["a"]}, {"status": "succeeded"}]
            for number, news in enumerate(steps):
                store.report(job.id, job.fence, number, **news)  # type: ignore[arg-type]
                settle(store)
            seen[name] = [json.loads(call.body)["status"] for call in hook.calls]
    running, ended = "processing", "succeeded"
    assert seen == {"all": [running, running, running, ended], "usual": [running, ended], "logs": [running]}


def test_output_is_told_at_most_every_half_second(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    new_job(store, "https://example.com")
    job = claimed(store)
    told = 0
    for tick in range(40):  # ten changes a second for four seconds
        now = 1000 + tick / 10
        store.report(job.id, job.fence, now, output=[str(tick)])
        for delivery in store.due(now):
            told += 1
            store.delivered(delivery.id)
    assert 6 <= told <= 8


def test_news_that_come_too_late_are_dropped(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver() as hook:
        new_job(store, hook.url)
        job = claimed(store)
        store.report(job.id, job.fence, 100.0, output=["a"])
        (late,) = store.due(100.0)  # a gateway took it and was lost
        store.report(job.id, job.fence, 101.0, status="succeeded")
        store.postpone(late.id, 0.0)
        with delivering(store):
            hook.wait(1)
            settle(store)
    assert [json.loads(call.body)["status"] for call in hook.calls] == ["succeeded"]
