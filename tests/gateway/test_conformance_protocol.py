"""Replicate's own clients against the real gateway, agent and coglet, with a small package: the protocol, C1 to C19."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from replicate.exceptions import ModelError, ReplicateError
from replicate.prediction import Prediction
from replicate.training import Training
from replicate.webhook import Webhooks

from tests.gateway.clients import Answer
from tests.gateway.receiving import receiver
from tests.gateway.running import Gateway, until

TOY = "local/toy"
PROGRESS = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)\/(\d+)")


@pytest.fixture(scope="module")
def version(toy: Gateway) -> str:
    return str(toy.curl(f"/v1/models/{TOY}").json()["latest_version"]["id"])


def begin(toy: Gateway, version: str, **asked: Any) -> Prediction:
    """A prediction that nobody waits for."""
    made: Prediction = toy.python1().predictions.create(version=version, input=asked)
    return made


def post(toy: Gateway, version: str, *options: str, **asked: Any) -> Answer:
    return toy.curl("/v1/predictions", *options, body={"version": version, "input": asked})


def reached(job: Prediction | Training, *statuses: str) -> bool:
    """Whether it has come to one of these."""
    job.reload()
    return job.status in statuses


def started(prediction: Prediction) -> Prediction:
    """Once a worker is at it."""
    until(lambda: reached(prediction, "processing", "succeeded"))
    return prediction


# C1


@pytest.mark.parametrize("prefix", ["/v1", "/v1/v1"])
@pytest.mark.parametrize("scheme", ["Bearer", "Token", "bearer"])
def test_c01_base_url_and_token(toy: Gateway, prefix: str, scheme: str) -> None:
    answer = toy.curl(f"{prefix}/account", "-H", f"Authorization: {scheme} {toy.token}", token="")
    assert answer.status == 200
    assert answer.json().keys() >= {"type", "username", "name"}


def test_c01_python1_takes_the_base_url_with_and_without_v1(toy: Gateway) -> None:
    for url in (toy.url, f"{toy.url}/", f"{toy.url}/v1"):
        assert toy.python1(url).models.get(TOY).name == "toy"


@pytest.mark.parametrize("token", ["", "r8_wrong"])
def test_c01_without_a_right_token_it_is_401(toy: Gateway, token: str) -> None:
    answer = toy.curl("/v1/account", token=token)
    assert answer.status == 401
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json().keys() >= {"title", "detail", "status"}
    assert answer.json()["title"] == "Unauthenticated"
    with pytest.raises(ReplicateError) as caught:
        toy.python1(token="r8_wrong").accounts.current()
    assert (caught.value.status, caught.value.title) == (401, "Unauthenticated")


# C2


def test_c02_every_way_to_name_a_model(toy: Gateway, version: str) -> None:
    python1 = toy.python1()
    assert python1.run(TOY, input={"text": "hi"})
    assert python1.run(f"{TOY}:{version}", input={"text": "hi"})
    for ref in (TOY, f"{TOY}:{version}", version):
        assert post(toy, ref, "-H", "Prefer: wait", text="hi").json()["status"] == "succeeded"
    unknown = post(toy, "f" * 64, text="hi")
    assert unknown.status in (404, 422)
    assert toy.curl("/v1/models/no/body/predictions", body={"input": {}}).status == 404


# C3


def test_c03_wait_answers_with_the_end(toy: Gateway, version: str) -> None:
    answer = post(toy, version, "-H", "Prefer: wait=30", text="hi")
    assert (answer.status, answer.json()["status"]) == (201, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.headers["location"] == answer.json()["urls"]["get"]


def test_c03_a_wait_that_runs_out_says_starting_and_get_the_truth(toy: Gateway, version: str) -> None:
    """Anything else would be taken for the end by the clients."""
    answer = post(toy, version, "-H", "Prefer: wait=1", "--max-time", "1.5", seconds=3)
    job = answer.json()
    assert (answer.status, job["status"]) == (202, "starting")
    assert toy.curl(job["urls"]["get"]).json()["status"] == "processing"
    toy.curl(job["urls"]["cancel"], "-X", "POST")
    # The clients go on polling, and give the output.
    assert toy.python1().run(TOY, input={"seconds": 1.5, "text": "x"}, wait=1)
    javascript = (
        'return (await replicate.run(given.ref, { input: given.input, wait: { mode: "block", timeout: 1 } })).length'
    )
    assert toy.javascript(javascript, ref=TOY, input={"seconds": 1.5, "text": "x"})


# C4


def test_c04_polling_sees_the_progress_of_the_bar(toy: Gateway, version: str) -> None:
    prediction = begin(toy, version, seconds=1.0)
    assert prediction.status == "starting"
    seen = []
    while prediction.status not in ("succeeded", "failed"):
        prediction.reload()
        if progress := prediction.progress:
            seen.append((progress.current, progress.total))
        time.sleep(0.05)
    assert prediction.status == "succeeded"
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert seen[-1][0] == seen[-1][1]
    javascript = """
const steps = [];
await replicate.run(given.ref, { input: { seconds: 0.6 }, wait: { mode: "poll", interval: 50 } }, (prediction) => {
  const last = (prediction.logs || "").split("\\n").reverse().find((line) => /^\\s*(\\d+)%\\s*\\|.+?\\|\\s*(\\d+)\\/(\\d+)/.test(line));
  if (last) steps.push(last);
});
return steps.length"""
    assert toy.javascript(javascript, ref=TOY) > 1


# C5

URLS = {"get", "cancel"}
TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_c05_the_object_is_what_all_clients_can_read(toy: Gateway, version: str) -> None:
    """OpenAPI's required keys; nothing null among the URLs; no status that a client does not know."""
    job = post(toy, version, "-H", "Prefer: wait", text="hi").json()
    for shown in (job, toy.curl(f"/v1/predictions/{job['id']}").json()):
        assert re.fullmatch(r"[a-z2-7]{26}", shown["id"])
        assert (shown["model"], shown["version"]) == (TOY, version)
        assert shown.keys() >= {"input", "output", "error", "logs", "metrics", "data_removed", "source", "urls"}
        assert shown["data_removed"] is False
        assert shown["urls"].keys() >= URLS
        assert all(isinstance(url, str) for url in shown["urls"].values())
        for name in ("created_at", "started_at", "completed_at"):
            assert TIMES.fullmatch(shown[name]), shown[name]
        assert shown["metrics"]["total_time"] >= shown["metrics"]["predict_time"] > 0
    waiting = post(toy, version, seconds=0.2).json()
    assert (waiting["started_at"], waiting["completed_at"]) == (None, None)


# C6


def test_c06_cancel_queued_running_and_ended(toy: Gateway, version: str) -> None:
    running, queued = begin(toy, version, seconds=60), begin(toy, version, seconds=60)
    started(running)
    for prediction in (queued, running):
        prediction.cancel()
        assert prediction.status == "canceled"
        assert prediction.completed_at
    after = begin(toy, version, text="after")
    after.wait()
    assert after.status == "succeeded"
    answer = toy.curl(f"/v1/predictions/{after.id}/cancel", "-X", "POST")
    assert (answer.status, answer.json()["status"]) == (200, "succeeded")
    assert toy.curl("/v1/predictions/nobody/cancel", "-X", "POST").status == 404
    javascript = """
const one = await replicate.predictions.create({ version: given.version, input: { seconds: 60 } });
const canceled = await replicate.predictions.cancel(one.id);
return [canceled.status, (await replicate.predictions.get(one.id)).status]"""
    assert toy.javascript(javascript, version=version) == ["canceled", "canceled"]


def cancel_at_once(toy: Gateway, version: str, times: int) -> None:
    """With a file, which coglet reads before it begins: cancel and the worker is usable afterwards."""
    image = "data:text/plain;base64," + "aGVsbG8g" * 20_000
    for number in range(times):
        prediction = begin(toy, version, image=image, seconds=30)
        if number % 3:
            time.sleep(0.02 * (number % 7))
        prediction.cancel()
        assert prediction.status == "canceled"
    after = post(toy, version, "-H", "Prefer: wait=20", text="after")
    assert after.json()["status"] == "succeeded"


def test_c06_cancel_right_after_create_with_a_file(toy: Gateway, version: str) -> None:
    cancel_at_once(toy, version, 12)


@pytest.mark.soak
def test_c06_cancel_right_after_create_200_times(toy: Gateway, version: str) -> None:
    cancel_at_once(toy, version, 200)


# C7


def test_c07_a_failure_has_the_models_own_words(toy: Gateway) -> None:
    with pytest.raises(ModelError) as caught:
        toy.python1().run(TOY, input={"action": "fail", "text": "bad"})
    prediction = caught.value.prediction
    assert prediction.status == "failed"
    assert prediction.error
    assert "bad" in prediction.error
    assert not prediction.error.startswith(("Prediction failed", "ValueError"))
    javascript = 'return replicate.run(given.ref, { input: { action: "fail", text: "bad" } }).then(() => null, (error) => error.message)'
    assert toy.javascript(javascript, ref=TOY) == f"Prediction failed: {prediction.error}"
    python2 = """
import replicate
try:
    replicate.run(given["ref"], input={"action": "fail", "text": "bad"})
except replicate.ReplicateError as error:
    result = error.prediction.error
"""
    assert toy.python2_script(python2, ref=TOY) == prediction.error


def test_c07_input_that_the_schema_refuses_is_422(toy: Gateway, version: str) -> None:
    answer = post(toy, version, seconds="long")
    problem = answer.json()
    assert answer.status == problem["status"] == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert problem["title"] == "Input validation failed"
    assert problem["detail"].startswith("- input.seconds: ")
    with pytest.raises(ReplicateError) as caught:
        begin(toy, version, action="fly")
    assert caught.value.status == 422
    assert "input.action" in (caught.value.detail or "")
    for body in ("{", "[]", '"x"', ""):
        assert toy.curl("/v1/predictions", "-H", "Content-Type: application/json", "-d", body).status in (400, 422)


# C8


def test_c08_pages_have_absolute_cursors_that_clients_follow(toy: Gateway, version: str) -> None:
    made = {begin(toy, version, text=str(number)).id for number in range(120)}
    first = toy.curl("/v1/predictions").json()
    assert len(first["results"]) == 100
    assert first["previous"] is None
    assert first["next"].startswith(f"{toy.url}/v1/")
    python1 = toy.python1()
    page: Any = python1.predictions.list()
    found = [each.id for each in page.results]
    while page.next:
        page = python1.predictions.list(page.next)
        found += [each.id for each in page.results]
    assert made <= set(found)
    assert len(set(found)) == len(found)
    javascript = """
const found = [];
for await (const page of replicate.paginate(replicate.predictions.list)) found.push(...page.map((each) => each.id));
return found"""
    assert set(toy.javascript(javascript)) == set(found)
    python2 = """
import replicate
result = [each.id for each in replicate.predictions.list()]
"""
    assert set(toy.python2_script(python2)) == set(found)


# C9


@pytest.mark.soak
def test_c09_four_outputs_are_in_order_fifty_times(toy: Gateway) -> None:
    for _ in range(50):
        outputs = toy.python1().run(TOY, input={"count": 4})
        assert [json.loads(output.read())["number"] for output in outputs] == [0, 1, 2, 3]


# C10


def test_c10_files_are_made_listed_read_and_removed(toy: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    python1 = toy.python1()
    made = python1.files.create(path, metadata={"who": "me"})
    assert (made.name, made.size, made.content_type) == ("note.txt", 5, "text/plain")
    assert made.checksums["sha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert made.checksums["md5"] == "5d41402abc4b2a76b9719d911017c592"
    assert made.metadata == {"who": "me"}
    assert python1.files.get(made.id).etag == made.etag
    assert made.id in [each.id for each in python1.files.list()]
    javascript = """
const file = await replicate.files.create(new File(["hello"], "a.txt", { type: "text/plain" }), { who: "you" });
const got = await replicate.files.get(file.id);
const listed = (await replicate.files.list()).results.map((each) => each.id);
const removed = await replicate.files.delete(file.id);
return [got.name, got.size, got.metadata, listed.includes(file.id), removed]"""
    assert toy.javascript(javascript) == ["a.txt", 5, {"who": "you"}, True, True]
    python1.files.delete(made.id)
    assert toy.curl(f"/v1/files/{made.id}").status == 404
    assert toy.curl(f"/v1/files/{made.id}", "-X", "DELETE").status == 404


# C11


def test_c11_streams_of_the_failed_and_the_canceled_end(toy: Gateway, version: str) -> None:
    python1 = toy.python1()
    with pytest.raises(RuntimeError, match="bad"):
        list(python1.stream(TOY, input={"action": "fail", "text": "bad"}))
    prediction = begin(toy, version, seconds=60)
    stream = prediction.stream()
    threading.Timer(0.5, prediction.cancel).start()
    events = list(stream)
    assert events[-1].event.value == "done"
    assert json.loads(events[-1].data) == {"reason": "canceled"}
    assert all(event.id for event in events)
    url = post(toy, version, text="x").json()["urls"]["stream"]
    answer = toy.curl(url, "-N", "-H", "Accept: text/event-stream", token="")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events_text = [event for event in answer.content.decode().split("\n\n") if event and not event.startswith(":")]
    assert all(re.search(r"^id: \d+:\d+$", event, re.MULTILINE) for event in events_text)


@pytest.mark.soak
def test_c11_forty_seconds_of_silence_are_waited_out(toy: Gateway, version: str) -> None:
    """The Python client gives up after 30 seconds without a byte."""
    blocking, quiet = begin(toy, version, seconds=40), begin(toy, version, text="quiet")
    events = list(quiet.stream())
    assert events[-1].event.value == "done"
    blocking.cancel()


# C12


def test_c12_trainings_in_every_spelling_get_list_and_cancel(toy: Gateway, version: str) -> None:
    python1 = toy.python1()
    url = python1.files.create(Path(__file__)).urls["get"]
    given: dict[str, Any] = {"input": {"input_images": url}, "destination": "my-name/spelt"}
    made = [
        python1.trainings.create(version=f"{TOY}:{version}", **given),
        python1.trainings.create(model=TOY, version=version, **given),
        python1.trainings.create(f"{TOY}:{version}", given["input"], given["destination"]),
    ]
    for training in made:
        until(partial(reached, training, "succeeded"))
        output = training.output or {}
        assert output["version"].startswith("my-name/spelt:")
        assert training.destination == "my-name/spelt"
        assert toy.curl(output["weights"], token="").status == 200
    slow = python1.trainings.create(f"{TOY}:{version}", {**given["input"], "seconds": 60}, "my-name/spelt")
    slow.cancel()
    assert python1.trainings.get(slow.id).status == "canceled"
    assert {each.id for each in (*made, slow)} <= {each.id for each in python1.trainings.list()}
    javascript = """
const one = await replicate.trainings.create("local", "toy", given.version, { destination: "my-name/spelt", input: { input_images: given.url, seconds: 60 } });
const canceled = await replicate.trainings.cancel(one.id);
return [one.status, canceled.status, (await replicate.trainings.list()).results.some((each) => each.id === one.id)]"""
    assert toy.javascript(javascript, version=version, url=url) == ["starting", "canceled", True]
    versions = toy.curl("/v1/models/my-name/spelt/versions").json()["results"]
    assert len(versions) == 3
    assert python1.run("my-name/spelt", input={"text": "hi"})


def test_c12_a_destination_of_somebody_else_is_404(toy: Gateway, version: str) -> None:
    url = toy.python1().files.create(Path(__file__)).urls["get"]
    with pytest.raises(ReplicateError) as caught:
        toy.python1().trainings.create(f"{TOY}:{version}", {"input_images": url}, "some-body/model")
    assert (caught.value.status, caught.value.detail) == (404, "The specified training destination does not exist")


# C13


def test_c13_webhooks_are_signed_filtered_and_tried_again(toy: Gateway, version: str) -> None:
    answers = {1: 500, 2: 500}
    python1 = toy.python1()
    with receiver(lambda number: (answers.get(number, 200), {})) as hook:
        prediction = python1.predictions.create(
            version=version, input={"text": "hi"}, webhook=hook.url, webhook_events_filter=["completed"]
        )
        calls = hook.wait(3)
        prediction.wait()
    secret = python1.webhooks.default.secret()
    for call in calls:
        Webhooks.validate(headers=call.headers, body=call.body.decode(), secret=secret)
        body = json.loads(call.body)
        assert (body["id"], body["status"]) == (prediction.id, "succeeded")
        assert body["output"] == toy.curl(f"/v1/predictions/{prediction.id}").json()["output"]
    assert len({call.headers["webhook-id"] for call in calls}) == 1
    assert len(calls) == 3


def test_c13_events_come_in_order_and_throttled(toy: Gateway, version: str) -> None:
    javascript = """
const { id } = await replicate.predictions.create({ version: given.version, input: { seconds: 1.2 }, webhook: given.hook, webhook_events_filter: ["start", "output", "logs", "completed"] });
let prediction = await replicate.predictions.get(id);
return (await replicate.wait(prediction, {})).status"""
    with receiver() as hook:
        assert toy.javascript(javascript, version=version, hook=hook.url) == "succeeded"
        until(lambda: json.loads(hook.calls[-1].body)["completed_at"])
        statuses = [json.loads(call.body)["status"] for call in hook.calls]
    assert statuses[-1] == "succeeded"
    assert statuses.count("succeeded") == 1
    # A bar of twenty steps in 1.2 seconds: at most two calls a second tell of logs, beside start, output and the end.
    assert 2 <= len(statuses) <= 7


# C14


def test_c14_what_else_the_clients_ask_for(toy: Gateway, version: str) -> None:
    python1 = toy.python1()
    assert python1.accounts.current().username
    assert [each.sku for each in python1.hardware.list()]
    assert list(python1.collections.list().results) is not None
    model = python1.models.get(TOY)
    assert model.latest_version
    assert [each.id for each in model.versions.list()] == [version]
    schema = model.versions.get(version).openapi_schema
    assert "seconds" in schema["components"]["schemas"]["Input"]["properties"]
    assert TOY in [f"{each.owner}/{each.name}" for each in python1.models.list()]
    assert TOY in [f"{each.owner}/{each.name}" for each in python1.models.search("toy").results]
    javascript = """
const account = await replicate.accounts.current();
const hardware = await replicate.hardware.list();
const collections = await replicate.collections.list();
const secret = await replicate.webhooks.default.secret.get();
const model = await replicate.models.get("local", "toy");
const versions = await replicate.models.versions.list("local", "toy");
const one = await replicate.models.versions.get("local", "toy", model.latest_version.id);
const listed = (await replicate.models.list()).results.map((each) => each.name);
const found = (await replicate.models.search("toy")).results.map((each) => each.name);
return [account.username, hardware.length, Array.isArray(collections.results), secret.key, versions.results.length, one.id, listed.includes("toy"), found.includes("toy")]"""
    username, hardware, collections, key, versions, one, listed, found = toy.javascript(javascript)
    assert (username, versions, one) == (python1.accounts.current().username, 1, version)
    assert hardware >= 1
    assert collections
    assert listed
    assert found
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/=]+", key)
    python2 = """
import replicate
result = [replicate.account.get().username, len(replicate.hardware.list()), replicate.webhooks.default.secret.get().key,
          [each.name for each in replicate.models.list()],
          replicate.models.versions.get(model_owner="local", model_name="toy", version_id=given["version"]).id]
"""
    username2, hardware2, key2, names, one = toy.python2_script(python2, version=version)
    assert (username2, hardware2, key2, one) == (username, hardware, key, version)
    assert "toy" in names


def test_c14_models_and_deployments_are_made_and_used(toy: Gateway, version: str) -> None:
    python1 = toy.python1()
    me = python1.accounts.current().username
    model = python1.models.create(owner=me, name="empty", visibility="private", hardware="cpu", description="none")
    assert (model.owner, model.name, model.visibility) == (me, "empty", "private")
    assert toy.curl(f"/v1/models/{me}/empty", "-X", "DELETE").status == 204
    deployment = python1.deployments.create(
        name="mine", model=TOY, version=version, hardware="cpu", min_instances=0, max_instances=1
    )
    prediction = deployment.predictions.create(input={"text": "hi"})
    prediction.wait()
    assert prediction.status == "succeeded"
    javascript = """
const made = await replicate.deployments.predictions.create(given.owner, "mine", { input: { text: "hi" } });
const got = await replicate.deployments.get(given.owner, "mine");
const status = (await replicate.wait(made, {})).status;
return [status, got.current_release.version, await replicate.deployments.delete(given.owner, "mine")]"""
    assert toy.javascript(javascript, owner=me) == ["succeeded", version, True]


# C17


def test_c17_an_input_that_the_model_has_not_is_dropped(toy: Gateway, version: str) -> None:
    assert post(toy, version, "-H", "Prefer: wait", text="hi", unheard_of=1).json()["status"] == "succeeded"


@pytest.mark.parametrize(
    "address",
    [
        "/etc/hostname",
        "file:///etc/hostname",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:9/x.png",
        "http://[::1]/x.png",
        "http://localhost:9/x.png",
        "http://user:word@example.com/x.png",
        "-o",
    ],
)
def test_c17_no_file_and_no_address_of_the_inside_is_read(toy: Gateway, version: str, address: str) -> None:
    """Refused when it is made, or by the worker: in both cases in one sentence."""
    answer = post(toy, version, "-H", "Prefer: wait", image=address)
    said = answer.json()
    assert answer.status == 422 or said["status"] == "failed", said
    words = said["detail"] if answer.status == 422 else said["error"]
    assert words
    assert "\n" not in words.strip()


# C19


def test_c19_cancel_after(toy: Gateway, version: str) -> None:
    """The deadline counts from the creation, in the queue and at work; no client knows `aborted`."""
    answer = post(toy, version, "-H", "Cancel-After: 5s", seconds=60)
    queued = post(toy, version, "-H", "Cancel-After: 5s", seconds=60)
    assert answer.json()["deadline"]
    python1 = toy.python1()
    with ThreadPoolExecutor() as pool:
        jobs = [python1.predictions.get(each.json()["id"]) for each in (answer, queued)]
        list(pool.map(lambda job: job.wait(), jobs))
    assert [job.status for job in jobs] == ["canceled", "canceled"]
    assert post(toy, version, "-H", "Prefer: wait", text="after").json()["status"] == "succeeded"
    for wrong in ("soon", "1s", "-5s"):
        assert post(toy, version, "-H", f"Cancel-After: {wrong}", text="x").status in (400, 422)
