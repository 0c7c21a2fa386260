"""What nobody may do: a section for each need. Where webhooks may go is in test_guard."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import logs
from gateway.settings import Settings, SettingsError
from gateway.sqlite import SQLite
from tests.gateway.receiving import receiver
from tests.gateway.standing import TOKEN, WORKER_TOKEN, Standing, standing


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("security")) as found:
        yield found


# Addresses in inputs, whatever the input is called: no local file, no private address, no option of a program


LOCAL = ["/etc/hostname", "file:///etc/hostname", "../../etc/passwd", "~/.ssh/id_rsa", "-O/etc/passwd", "C:\\x"]
INSIDE = [
    "http://127.0.0.1/x",
    "http://localhost:5000/shutdown",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/x",
    "http://[::ffff:10.0.0.1]/x",
    "http://[64:ff9b::a00:1]/x",
    "http://2130706433/x",
    "http://0x7f.1/x",
    "http://user:pa55word@example.com/x",
    "http://example.com\\@127.0.0.1/x",
    "gopher://example.com/x",
    "http://example.com:0/x",
]


@pytest.mark.parametrize("name", ["image", "images", "replicate_weights", "lora_weights"])
@pytest.mark.parametrize("address", LOCAL + INSIDE)
def test_inputs_lead_nowhere_inside(here: Standing, name: str, address: str) -> None:
    value: Any = ["https://example.com/a.png", address] if name == "images" else address
    answer = here.create(input={name: value})
    assert answer.status_code == 422, answer.text
    assert f"input.{name}" in answer.json()["detail"]
    assert "pa55word" not in answer.text


@pytest.mark.parametrize("address", ["https://example.com/a.png", "data:image/png;base64,AAAA"])
def test_inputs_that_lead_outside_are_taken(here: Standing, address: str) -> None:
    answer = here.create(input={"image": address, "replicate_weights": address})
    assert answer.status_code == 201
    here.client.post(f"/v1/predictions/{answer.json()['id']}/cancel")


def test_another_gateway_s_address_is_no_way_to_a_file_of_ours(here: Standing) -> None:
    file = here.upload(b"x")
    for host in (f"{here.url}@example.com", f"{here.url}.example.com"):
        answer = here.create(input={"image": f"{host}/v1/files/{file['id']}"})
        assert answer.status_code == 422, host


# Webhooks


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1/",
        "https://192.168.0.1/",
        "https://example.com:22/",
        "ftp://example.com/",
        "/hook",
        "https://u:p@example.com/",
    ],
)
def test_webhooks_lead_nowhere_inside(here: Standing, address: str) -> None:
    answer = here.create(webhook=address)
    assert answer.status_code == 422, answer.text
    assert "webhook" in answer.json()["detail"]


def test_a_gateway_for_others_calls_no_webhook_on_its_own_machine(tmp_path: Path) -> None:
    with standing(tmp_path, webhook_loopback="no") as found, receiver() as hook:
        assert found.create(webhook=hook.url).status_code == 422


# What is sent: bounded before it is parsed


def test_a_body_that_says_it_is_too_large_is_not_waited_for(here: Standing) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    for path in ("/v1/predictions", "/v1/files"):
        kind = "multipart/form-data; boundary=b" if path == "/v1/files" else "application/json"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {kind}\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
            assert b" 413 " in connection.recv(4096)


ENDLESS = {"a header": b"X: ", "headers": b"", "an address": b""}


@pytest.mark.parametrize("what", list(ENDLESS))
def test_a_head_that_never_ends_is_cut_off_before_any_token_is_asked_for(here: Standing, what: str) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    piece = b"X-A: b\r\n" * 1000 if what == "headers" else b"a" * 8000
    head = b"GET /" if what == "an address" else b"GET /v1/account HTTP/1.1\r\nHost: a\r\n" + ENDLESS[what]

    def flood() -> None:
        for _ in range(10_000):
            connection.sendall(piece)

    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            flood()


def test_a_head_that_comes_too_slowly_is_not_waited_for(here: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.protocol.PATIENCE", 0.2)
    host, port = here.url.removeprefix("http://").split(":")
    bad, good = b"HTTP/1.1 400 Bad Request", b"HTTP/1.1 200 OK"
    asked = {b"": b"", b"GET / HTTP/1.1\r\n": bad, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET": good}
    for sent, answer in asked.items():
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            said = b"".join(iter(lambda: connection.recv(4096), b""))
        assert said.partition(b"\r\n")[0] == answer


def test_a_large_body_is_no_large_head(here: Standing) -> None:
    text = "a" * 3 * 2**20
    answers = [here.create(input={"prompt": text}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201] * 3
    for answer in answers:
        here.client.post(f"/v1/predictions/{answer.json()['id']}/cancel")


def endless() -> Iterator[bytes]:
    """A body in chunks that states no length: 200 MiB."""
    yield b'--b\r\nContent-Disposition: form-data; name="content"; filename="a"\r\n\r\n'
    for _ in range(200):
        yield b"a" * 2**20


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/predictions", "application/json"), ("/v1/files", "multipart/form-data; boundary=b")]
)
def test_a_body_that_never_ends_is_cut_off(here: Standing, path: str, kind: str) -> None:
    try:
        answer = here.client.post(path, content=endless(), headers={"Content-Type": kind})
    except httpx.WriteError:  # it had closed the connection by then
        return
    assert answer.status_code == 413
    assert not list(Path(here.settings.files).rglob("*.part"))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"input": {"a": NaN}}',
        b"\xff\xfe",
        b'{"a": 1e999}',
        b'"text"',
        b"",
        b"null",
        b'{"version": 1}',
    ],
)
def test_hostile_json_is_refused(here: Standing, body: bytes) -> None:
    answer = here.client.post("/v1/predictions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--b",
        b"--b--\r\n",
        b"--b\r\n\r\nx\r\n--b--",
        b"\r\n--b\r\n" * 2000,
        b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
    ],
)
def test_hostile_multipart_is_refused(here: Standing, content: bytes) -> None:
    answer = here.client.post("/v1/files", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code in (400, 413, 422), answer.text


# Names and ids are no paths


TRAVERSAL = [
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "a%00b",
    "a" * 4000,
    "\u202ea",
    "%ff",
]


@pytest.mark.parametrize("name", TRAVERSAL)
@pytest.mark.parametrize(
    "place",
    [
        "predictions/{}",
        "files/{}",
        "files/{}/a.png",
        "files/{}/download",
        "models/{}/x",
        "models/x/{}",
        "deployments/x/{}",
        "trainings/{}",
    ],
)
def test_ids_in_addresses_are_no_paths(here: Standing, place: str, name: str) -> None:
    answer = here.client.get(f"/v1/{place.format(name)}", follow_redirects=False)
    assert answer.status_code in (400, 401, 403, 404, 405, 414, 422), answer.text
    assert "root:" not in answer.text


def test_a_worker_chooses_no_path(here: Standing) -> None:
    here.create()
    job = here.claim()
    for number, name in enumerate(
        ["../../../x.png", "/etc/x", "a\r\nSet-Cookie: b", 'a"; filename="b.html', "\u0000", "x" * 5000]
    ):
        answer = here.worker.put(
            f"/_worker/jobs/{job['id']}/files/{number}",
            params={"fence": job["fence"], "name": name},
            content=b"x",
            headers={"Content-Type": "image/png"},
        )
        assert answer.status_code in (200, 400, 422), answer.text
        if answer.status_code == 200:
            shown = here.anonymous("GET", answer.json()["url"])
            assert shown.status_code == 200
            assert "set-cookie" not in shown.headers
    assert {path.parent for path in Path(here.settings.files).rglob("*") if path.is_file()} <= {
        path for path in [Path(here.settings.files), *Path(here.settings.files).rglob("*")] if path.is_dir()
    }
    assert not (Path(here.settings.files).parent / "x.png").exists()
    for job_id in ("..%2f..%2fx", "a" * 26, "x"):
        answer = here.worker.post(f"/_worker/jobs/{job_id}/report", json={"fence": 1, "status": "succeeded"})
        assert answer.status_code in (404, 410)
    here.report(job, status="succeeded")


def test_ids_of_jobs_are_the_gateway_s_own(here: Standing) -> None:
    """coglet makes a folder of a prediction's id."""
    answer = here.create(id="../../x")
    assert answer.status_code in (201, 422)
    for key in ("../../x", "a" * 300):
        answer = here.client.post(
            "/v1/predictions", json={"version": here.version, "input": {}}, headers={"Idempotency-Key": key}
        )
        if answer.status_code == 201:
            assert re.fullmatch("[a-z2-7]{26}", answer.json()["id"])
    for job in here.client.get("/v1/predictions").json()["results"]:
        here.client.post(f"/v1/predictions/{job['id']}/cancel")


# What comes out: files of strangers, shown under the gateway's name


HOSTILE = {
    "text/html": b"<script>alert(1)</script>",
    "image/svg+xml": b"<svg onload='alert(1)'/>",
    "application/xhtml+xml": b"<a/>",
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_stored_pages_are_no_pages(here: Standing, kind: str) -> None:
    here.create()
    job = here.claim()
    answer = here.worker.put(
        f"/_worker/jobs/{job['id']}/files/0",
        params={"fence": job["fence"], "name": "a.html"},
        content=HOSTILE[kind],
        headers={"Content-Type": kind},
    )
    here.report(job, status="succeeded")
    shown = here.anonymous("GET", answer.json()["url"])
    assert shown.content == HOSTILE[kind]
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in shown.headers["content-security-policy"]
    assert shown.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("name", ['a"b.png', "a\r\nSet-Cookie: x=1\r\n.png", "ü€.png", "../a.png", "a;b.png", ""])
def test_file_names_are_no_headers(here: Standing, name: str) -> None:
    here.create()
    job = here.claim()
    url = here.worker.put(
        f"/_worker/jobs/{job['id']}/files/0", params={"fence": job["fence"], "name": name}, content=b"x"
    ).json()["url"]
    here.report(job, status="succeeded")
    shown = here.anonymous("GET", url)
    assert shown.status_code == 200
    assert "set-cookie" not in shown.headers
    assert "\n" not in shown.headers["content-disposition"]


@pytest.mark.parametrize(
    "ranges",
    [
        "bytes=" + ",".join(f"{n}-{n}" for n in range(3000)),
        "bytes=" + "0-," * 3000,
        "bytes=0-" + "9" * 4000,
        "bytes=--1",
        "bytes=9-1",
        "lines=1-2",
    ],
)
def test_ranges_multiply_nothing(here: Standing, ranges: str) -> None:
    here.create()
    job = here.claim()
    url = here.worker.put(
        f"/_worker/jobs/{job['id']}/files/0", params={"fence": job["fence"], "name": "a.png"}, content=b"x" * 10_000
    ).json()["url"]
    here.report(job, status="succeeded")
    shown = here.anonymous("GET", url, headers={"Range": ranges})
    assert shown.status_code in (200, 206, 400, 416)
    assert len(shown.content) <= 10_000


def test_an_output_s_address_cannot_be_guessed_and_needs_no_token(here: Standing) -> None:
    here.create()
    job = here.claim()
    url = here.worker.put(
        f"/_worker/jobs/{job['id']}/files/0", params={"fence": job["fence"], "name": "a.png"}, content=b"x"
    ).json()["url"]
    here.report(job, status="succeeded")
    (secret,) = re.findall(r"/v1/files/([a-z2-7]+)/a\.png$", url)
    assert len(secret) * 5 >= 128
    assert here.anonymous("GET", url).status_code == 200
    assert here.anonymous("GET", url.replace(secret, "a" * 26)).status_code == 404


# Tokens


def test_nothing_listens_beyond_this_machine_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.com"):
        with pytest.raises(SettingsError, match="TOKEN"):
            Settings(host=host).checked()
        with pytest.raises(SettingsError, match="TOKEN"):
            Settings(host=host, token="short").checked()
        Settings(host=host, token=TOKEN).checked()


def test_nor_is_a_gateway_behind_a_proxy_one_for_this_machine_alone() -> None:
    with pytest.raises(SettingsError, match="TOKEN"):
        Settings(public_url="https://sdxl.example.com").checked()
    behind = Settings(public_url="https://sdxl.example.com", token=TOKEN).checked()
    assert not behind.webhooks.loopback
    assert Settings().checked().webhooks.loopback


WHO = {
    "none": "",
    "wrong": "Bearer nonsense",
    "basic": f"Basic {TOKEN}",
    "worker": f"Bearer {WORKER_TOKEN}",
    "twice": f"Bearer {TOKEN} {TOKEN}",
}
CLOSED = [
    "/v1/account",
    "/v1/predictions",
    "/v1/files",
    "/v1/models",
    "/v1/trainings",
    "/v1/webhooks/default/secret",
    "/v1/deployments",
    "/v1/hardware",
]


@pytest.mark.parametrize("who", list(WHO))
@pytest.mark.parametrize("path", CLOSED)
def test_the_api_is_for_its_own_tokens(here: Standing, path: str, who: str) -> None:
    answer = here.anonymous("GET", path, headers={"Authorization": WHO[who]} if WHO[who] else {})
    assert answer.status_code == (403 if who == "worker" else 401), answer.text
    assert TOKEN not in answer.text


@pytest.mark.parametrize("sent", ["", f"Bearer {TOKEN}"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "register"),
        ("POST", "claim"),
        ("POST", "heartbeat"),
        ("POST", "jobs/x/report"),
        ("POST", "jobs/x/hand-back"),
        ("PUT", "jobs/x/files/0"),
        ("GET", "files/x"),
    ],
)
def test_workers_calls_are_for_workers(here: Standing, method: str, path: str, sent: str) -> None:
    answer = here.anonymous(method, f"/_worker/{path}", headers={"Authorization": sent} if sent else {}, json={})
    assert answer.status_code == (403 if sent else 401), answer.text


def test_a_worker_s_token_does_not_open_a_client_s_job(here: Standing) -> None:
    job = here.create().json()
    assert here.worker.get(f"/v1/predictions/{job['id']}").status_code == 403
    assert here.worker.post(f"/v1/predictions/{job['id']}/cancel").status_code == 403
    here.client.post(f"/v1/predictions/{job['id']}/cancel")


def test_accounts_do_not_see_each_other(here: Standing) -> None:
    store = SQLite(here.settings.database.removeprefix("sqlite:///"))
    other = "r8_" + "o" * 37
    store.put_token(hashlib.sha256(other.encode()).hexdigest(), "other", "api")
    store.close()
    job, file = here.create().json(), here.upload(b"mine")
    head = {"Authorization": f"Bearer {other}"}
    for method, path in (
        ("GET", f"predictions/{job['id']}"),
        ("POST", f"predictions/{job['id']}/cancel"),
        ("GET", f"files/{file['id']}"),
        ("DELETE", f"files/{file['id']}"),
    ):
        assert here.anonymous(method, f"/v1/{path}", headers=head).status_code == 404, path
    for path in ("predictions", "files", "trainings"):
        assert here.anonymous("GET", f"/v1/{path}", headers=head).json()["results"] == []
    assert here.anonymous("GET", "/v1/account", headers=head).json()["username"] == "other"
    here.client.post(f"/v1/predictions/{job['id']}/cancel")


def test_tokens_are_not_kept(here: Standing) -> None:
    here.client.get("/v1/account")
    for path in Path(here.settings.database.removeprefix("sqlite:///")).parent.rglob("*"):
        if path.is_file():
            kept = path.read_bytes()
            assert TOKEN.encode() not in kept, path
            assert WORKER_TOKEN.encode() not in kept, path


def test_no_page_of_another_origin_may_read_answers(here: Standing) -> None:
    answer = here.client.get("/v1/account", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    answer = here.anonymous(
        "OPTIONS",
        "/v1/predictions",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in answer.headers


def test_a_gateway_without_a_token_serves_no_page_of_another_origin(tmp_path: Path) -> None:
    with standing(tmp_path, token="") as found:
        assert found.anonymous("GET", "/v1/account").status_code == 200
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            assert found.anonymous("GET", "/v1/account", headers=headers).status_code == 401, headers


# Limits


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    with standing(tmp_path, creates=3) as found:
        answers = [found.create() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_who_has_too_many_jobs_queued_waits(tmp_path: Path) -> None:
    with standing(tmp_path, queued=2) as found:
        answers = [found.create() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]


# Secrets


def test_nothing_secret_is_logged_or_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "api_key": "sk-planted-secret-input",
        "image": "data:image/png;base64,cGxhbnRlZC1kYXRh",
        "replicate_weights": "https://example.com/w.tar?X-Amz-Signature=planted-signature",
    }
    root, said = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", said)
    with standing(tmp_path) as found, receiver() as hook:
        logs.setup(as_json=True)
        made = found.create(input=planted, webhook=f"{hook.url}?key=planted-query")
        assert made.status_code == 201, made.text
        job = found.claim()
        assert job["input"]["api_key"] == planted["api_key"]
        url = found.worker.put(
            f"/_worker/jobs/{job['id']}/files/0", params={"fence": job["fence"], "name": "a.png"}, content=b"x"
        ).json()["url"]
        found.anonymous("GET", made.json()["urls"]["stream"] + "x")
        found.report(job, status="failed", error="ValueError: sk-nothing", output=[url], logs="planted-model-log")
        found.report(job, status="succeeded")
        found.create(input={"image": "http://127.0.0.1/?planted-refused"})
        found.anonymous(
            "GET", f"/v1/predictions?token={TOKEN}", headers={"Authorization": "Bearer planted-wrong-token"}
        )
        shown = found.client.get(f"/v1/predictions/{job['id']}").text
        (call,) = hook.wait(1)
    root.handlers[:] = handlers
    root.setLevel(level)
    secrets = [
        *re.findall(r"planted-[\w-]+|cGxhbnRlZC1kYXRh", json.dumps(planted)),
        *("planted-query", "planted-model-log", "planted-refused", "planted-wrong-token", TOKEN, WORKER_TOKEN),
        url.split("/")[-2],
        made.json()["urls"]["stream"].split("/")[-1],
    ]
    assert job["id"] in said.getvalue()
    assert [secret for secret in secrets if secret in said.getvalue()] == []
    assert planted["api_key"] not in made.text + shown + call.body.decode()
