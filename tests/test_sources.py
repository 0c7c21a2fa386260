"""Every way to name a fine-tune, over a real server: what is asked, with which token, what is said of faults."""

import base64
import hashlib
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weights
from errors import WeightsError
from fetch import obtain
from fetch.answers import Manner, Patience, Stop
from fetch.repository import choose
from fetch.sources import Plan, Tokens, understood
from sdxl.files import TunedFiles
from tests.file_server import FileServer, file_server, redirect, status, tarred, tensors
from tests.test_network import pretend

QUICK = Manner(workers=2, piece=1 << 20, deadline=20, patience=Patience(attempts=2, backoff=0.01, window=1.0))
LORA, OTHER = tensors(), tensors(seed=1)
TAR = tarred({"lora.safetensors": LORA, "special_params.json": b'{"TOK": "<s0><s1>"}'})
ID = "0123456789abcdef" * 4
SHA = "c" * 40
EMBEDDINGS = ("x_emb", "x-EMB", "emb", "embeddings", "x_embeddings", "x_embedding", "embs", "learned_embeds")
SECRET = Tokens(huggingface="hf-secret", civitai="civitai-secret", replicate="replicate-secret")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SDXL_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDXL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SDXL_DISK_FLOOR_GB", "0")
    monkeypatch.setattr(obtain, "_recent", {})
    return tmp_path / "cache"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """One server that is all three services, and anywhere else."""
    with file_server() as server:
        for name in ("SDXL_REPLICATE_ENDPOINT", "HF_ENDPOINT", "SDXL_CIVITAI_ENDPOINT"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("SDXL_PRIVATE_INPUTS", "1")
        server.files["/any/TOK.safetensors"] = LORA
        yield server


def got(source: str, *, tokens: Tokens = SECRET, first: Any = "replicate", **more: Any) -> tuple[TunedFiles, set[str]]:
    """The files of a source, and their names while they were kept."""
    with weights.fine_tune(source, tokens=tokens, first=first, stop=Stop(), manner=QUICK, **more) as files:
        return files, {path.name for path in files.folder.rglob("*") if path.is_file()}


def refused(source: str, **more: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        got(source, **more)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def asked(web: FileServer) -> list[str]:
    return list(dict.fromkeys(path for path, *_ in web.log))


@pytest.mark.parametrize("form", ["{}", "{}?signature=secret", "{}#part", " {} "])
def test_any_url(web: FileServer, form: str) -> None:
    files, names = got(form.format(f"{web.url}/any/TOK.safetensors"))
    assert (files.name, names) == ("TOK", {"weights.safetensors"})
    assert files.shown == f"{web.url}/any/TOK.safetensors"
    assert files.key == hashlib.sha256(LORA).hexdigest()
    assert {token for *_, token in web.log} == {None}  # no service's token is for this server


def test_a_password_in_a_url_stays_unsaid(web: FileServer) -> None:
    files, _ = got(f"{web.url.replace('//', '//me:p@secret@')}/any/TOK.safetensors")
    assert files.shown == f"{web.url}/any/TOK.safetensors"
    assert "secret" not in refused(f"{web.url.replace('//', '//me:p@secret@')}/absent?x=secret")


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ('attachment; filename="Eich mann.safetensors"', "Eich mann"),
        ("attachment; filename*=UTF-8''na%C3%AFve.safetensors", "naïve"),
        ('attachment; filename="../../etc/x.safetensors"', "x"),
        ('attachment; filename="weights.bin"', ""),
        ("attachment; filename*=none''x.safetensors", "x"),
        ("inline", ""),
    ],
)
def test_the_server_names_the_file(web: FileServer, stated: str, name: str) -> None:
    web.files["/download/7"] = LORA
    web.headers["/download/7"] = {"Content-Disposition": stated}
    assert got(f"{web.url}/download/7")[0].name == name


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("me/tuned", "/me/tuned/_weights"),
        (f"me/tuned:{ID}", f"/me/tuned/versions/{ID}/_weights"),
        (f"me/tuned/{ID}", f"/me/tuned/versions/{ID}/_weights"),
        (f"me/tuned/versions/{ID}", f"/me/tuned/versions/{ID}/_weights"),
        ("replicate.com/me/tuned", "/me/tuned/_weights"),
        ("HTTPS://Replicate.com/me/tuned/", "/me/tuned/_weights"),
        (f"https://replicate.com/me/tuned/versions/{ID}?x=1#y", f"/me/tuned/versions/{ID}/_weights"),
        (f"https://replicate.com/me/tuned:{ID}", f"/me/tuned/versions/{ID}/_weights"),
        ("https://replicate.com/me/tuned/_weights", "/me/tuned/_weights"),
    ],
)
def test_replicate(web: FileServer, form: str, path: str) -> None:
    web.always[path], web.files["/delivery/trained_model.tar"] = redirect("/delivery/trained_model.tar"), TAR
    files, names = got(form)
    assert names == {"lora.safetensors", "special_params.json"}
    assert asked(web) == [path, "/delivery/trained_model.tar"]
    assert web.log[0][2] == "Bearer replicate-secret"
    assert files.shown == f"replicate.com{path.removesuffix('/_weights')}"
    assert got(files.shown)[0].key == files.key  # what is shown is a source


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("me/repo/a b.safetensors", "/me/repo/resolve/main/a%20b.safetensors"),
        ("me/repo/deep/x.SAFETENSORS", "/me/repo/resolve/main/deep/x.SAFETENSORS"),
        ("huggingface.co/me/repo/resolve/main/x.safetensors", "/me/repo/resolve/main/x.safetensors"),
        ("huggingface.co/me/repo/x.safetensors", "/me/repo/resolve/main/x.safetensors"),
        (
            "https://huggingface.co/me/repo/deep/a%20b.safetensors?download=true",
            "/me/repo/resolve/main/deep/a%20b.safetensors",
        ),
        ("hf.co/me/repo/x.SAFETENSORS#part", "/me/repo/resolve/main/x.SAFETENSORS"),
        ("http://www.HF.co/me/repo/x.safetensors", "/me/repo/resolve/main/x.safetensors"),
        ("https://huggingface.co/me/repo/blob/v1/x.safetensors?download=true", "/me/repo/resolve/v1/x.safetensors"),
        (
            "https://hf.co/me/repo/raw/refs%2Fpr%2F1/a%20b.safetensors",
            "/me/repo/resolve/refs%2Fpr%2F1/a%20b.safetensors",
        ),
    ],
)
def test_a_file_on_the_hub(web: FileServer, form: str, path: str) -> None:
    web.files[path] = LORA
    files, _ = got(form)
    assert asked(web) == [path]
    assert {token for *_, token in web.log} == {"Bearer hf-secret"}
    assert files.shown == f"huggingface.co{path}"
    assert got(files.shown)[0].key == files.key


def test_a_tar_on_the_hub(web: FileServer) -> None:
    web.files["/me/repo/resolve/main/deep/x.tar"] = TAR
    for form in ("hf.co/me/repo/deep/x.tar", "https://huggingface.co/me/repo/deep/x.tar", "me/repo/deep/x.tar"):
        assert got(form)[1] == {"lora.safetensors", "special_params.json"}


def hub(web: FileServer, names: list[str], api: str = "/api/models/me/repo") -> None:
    web.files[api] = json.dumps({"sha": SHA, "siblings": [{"rfilename": name} for name in names]}).encode()
    for name in names:
        web.files[f"/me/repo/resolve/{SHA}/{quote(name)}"] = OTHER if "emb" in name else LORA


@pytest.mark.parametrize("form", ["huggingface.co/me/repo", "https://hf.co/me/repo/tree/main", "me/repo"])
def test_a_repository(web: FileServer, form: str) -> None:
    hub(web, ["README.md", "x.safetensors", "x_emb.safetensors"], "/api/models/me/repo")
    hub(web, ["README.md", "x.safetensors", "x_emb.safetensors"], "/api/models/me/repo/revision/main")
    files, names = got(form, first="huggingface")
    assert (names, files.name) == ({"weights.safetensors", "embeddings.safetensors"}, "x")
    assert files.shown == f"huggingface.co/me/repo/resolve/{SHA}/x.safetensors"
    assert (files.folder / "embeddings.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            ["z.safetensors", "pytorch_lora_weights.safetensors", "lora.safetensors"],
            ["pytorch_lora_weights.safetensors"],
        ),
        (["z.safetensors", "lora.safetensors"], ["lora.safetensors"]),
        (["a/z.safetensors", "b/y.safetensors", "x.safetensors"], ["x.safetensors"]),
        (["a/z.safetensors", "model.bin"], ["a/z.safetensors"]),
        (["x.safetensors", "x_emb.safetensors"], ["x.safetensors", "x_emb.safetensors"]),
        (["x.safetensors", "a_emb.safetensors", "b_emb.safetensors"], ["x.safetensors"]),
        (["only_emb.safetensors"], ["only_emb.safetensors"]),
        *((["x.safetensors", f"{name}.safetensors"], ["x.safetensors", f"{name}.safetensors"]) for name in EMBEDDINGS),
        (["adapter_model.safetensors", "adapter_config.json"], ["adapter_model.safetensors", "adapter_config.json"]),
        (
            ["a/adapter_model.safetensors", "a/adapter_config.json"],
            ["a/adapter_model.safetensors", "a/adapter_config.json"],
        ),
        (["adapter_model.safetensors", "a/adapter_config.json"], ["adapter_model.safetensors"]),
        (["x.safetensors", "adapter_config.json"], ["x.safetensors"]),
        (
            ["adapter_model.safetensors", "emb.safetensors", "adapter_config.json"],
            ["adapter_model.safetensors", "adapter_config.json", "emb.safetensors"],
        ),
        (["trained_model.tar", "other.tar"], ["trained_model.tar"]),
        (["other.tar"], ["other.tar"]),
    ],
)
def test_which_file_of_a_repository(names: list[str], chosen: list[str]) -> None:
    assert choose("repo", names) == chosen


@pytest.mark.parametrize("name", ["december", "member", "emblem", "assembly", "ember-x", "remembers"])
def test_what_only_sounds_like_embeddings(name: str) -> None:
    with pytest.raises(WeightsError, match=f"several files that could be meant: {name}.safetensors, january"):
        choose("repo", [f"{name}.safetensors", "january.safetensors"])


@pytest.mark.parametrize("form", ["me/repo", "huggingface.co/me/repo/tree/v1", "me/repo/adapter_model.safetensors"])
def test_peft_s_config_comes_along(web: FileServer, form: str) -> None:
    names = ["README.md", "adapter_model.safetensors", "adapter_config.json"]
    for api in ("/api/models/me/repo", "/api/models/me/repo/revision/v1", f"/api/models/me/repo/revision/{SHA}"):
        hub(web, names, api)
    config = f"/me/repo/resolve/{SHA}/adapter_config.json"
    web.files[config] = b'{"lora_alpha": 8}'
    files, kept = got(form, first="huggingface")
    assert (kept, files.name) == ({"weights.safetensors", "adapter_config.json"}, "adapter_model")
    assert (files.folder / "adapter_config.json").read_bytes() == b'{"lora_alpha": 8}'
    assert files.shown == f"huggingface.co/me/repo/resolve/{SHA}/adapter_model.safetensors"
    assert got(files.shown)[0].key == files.key  # what is shown is a source, of the same weights
    web.files[config], web.etags[config] = b'{"lora_alpha": 9}', '"two"'
    obtain._recent.clear()
    again, _ = got(form, first="huggingface")
    assert again.key != files.key
    assert (again.folder / "adapter_config.json").read_bytes() == b'{"lora_alpha": 9}'


def test_an_adapter_without_a_config(web: FileServer) -> None:
    hub(web, ["deep/adapter_model.safetensors", "adapter_config.json"])
    files, kept = got("me/repo/deep/adapter_model.safetensors")
    assert (kept, files.key) == ({"weights.safetensors"}, hashlib.sha256(LORA).hexdigest())


def test_a_choice_that_cannot_be_made_lists_the_files() -> None:
    with pytest.raises(
        WeightsError, match=r"f0\.safetensors, .*f7\.safetensors and 2 more; name one as owner/repo/FILE"
    ):
        choose("huggingface.co/me/repo", [f"f{n}.safetensors" for n in range(10)])
    with pytest.raises(WeightsError, match=r"holds no \.safetensors"):
        choose("huggingface.co/me/repo", ["model.bin", "README.md"])


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"no", b"[" * 100_000, b'{"siblings": [1, {"rfilename": null}]}'])
def test_an_answer_of_the_hub_that_makes_no_sense(web: FileServer, answer: bytes) -> None:
    web.files["/api/models/me/repo"] = answer
    assert "holds no" in (said := refused("huggingface.co/me/repo")) or "no JSON" in said


def test_an_answer_without_end(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obtain, "ANSWER", 1000)
    web.files["/api/models/me/repo"] = b" " * 1001 + b"{}"
    assert "is too long" in refused("huggingface.co/me/repo")


@pytest.mark.parametrize("first", ["replicate", "huggingface"])
@pytest.mark.parametrize("there", ["replicate", "huggingface"])
def test_a_plain_name_is_asked_for_in_order(web: FileServer, first: str, there: str) -> None:
    hub(web, ["x.safetensors"] if there == "huggingface" else [])
    if there == "replicate":
        web.files["/me/repo/_weights"] = TAR
        del web.files["/api/models/me/repo"]
    files, _ = got("me/repo", first=first)
    assert files.shown.startswith(there)
    assert asked(web)[0] == ("/me/repo/_weights" if first == "replicate" else "/api/models/me/repo")
    assert (len({path.split("/")[1] == "api" for path in asked(web)}) == 1) == (first == there == "replicate")


def test_a_plain_name_that_nobody_knows(web: FileServer) -> None:
    assert "'me/repo' is neither a model with weights on Replicate nor a repository on Hugging" in refused("me/repo")
    web.always["/api/models/me/repo"] = status(401)  # as the hub answers strangers
    assert "is neither" in refused("me/repo", tokens=Tokens())
    assert "set hf_api_token" in refused("me/repo")
    web.always["/me/repo/_weights"] = status(403)
    assert "set replicate_api_token" in refused("me/repo")


def civitai(web: FileServer, **more: Any) -> dict[str, Any]:
    file = {
        "name": "Eich.safetensors",
        "type": "Model",
        "downloadUrl": f"{web.url}/api/download/models/5",
        "hashes": {"SHA256": hashlib.sha256(LORA).hexdigest().upper()},
        "metadata": {"format": "SafeTensor"},
        **more,
    }
    version = {"id": 5, "files": [{"type": "Training Data", "downloadUrl": f"{web.url}/no"}, file]}
    web.files["/api/v1/models/1"] = json.dumps({"modelVersions": [version, {"id": 4, "files": []}]}).encode()
    web.files["/api/v1/model-versions/5"] = json.dumps(version).encode()
    web.always["/api/download/models/5"], web.files["/cdn/5"] = redirect("/cdn/5"), LORA
    return version


@pytest.mark.parametrize(
    ("form", "api"),
    [
        ("civitai.com/models/1", "models/1"),
        ("https://civitai.com/models/1/the-slug", "models/1"),
        ("https://www.civitai.com/models/1/the-slug?modelVersionId=5", "model-versions/5"),
        ("https://civitai.com/models/1?modelVersionId=5&x=y#z", "model-versions/5"),
        ("https://civitai.com/api/download/models/5?type=Model&format=SafeTensor", "model-versions/5"),
        ("civitai.com/model-versions/5", "model-versions/5"),
    ],
)
def test_civitai(web: FileServer, form: str, api: str) -> None:
    civitai(web)
    files, _ = got(form)
    assert asked(web) == [f"/api/v1/{api}", "/api/download/models/5", "/cdn/5"]
    assert {token for *_, token in web.log} == {"Bearer civitai-secret"}
    assert (files.name, files.shown) == ("Eich", "civitai.com/model-versions/5")


def test_civitai_s_own_links_carry_the_token(web: FileServer) -> None:
    civitai(web)
    got("https://civitai.com/api/download/models/5?token=from-link", tokens=Tokens())
    assert {token for *_, token in web.log} == {"Bearer from-link"}


def test_civitai_s_digest_is_checked(web: FileServer) -> None:
    civitai(web, hashes={"SHA256": "0" * 64})
    assert "not the expected file" in refused("civitai.com/models/1")


def test_civitai_s_primary_file_wins(web: FileServer) -> None:
    version = civitai(web)
    primary = {**version["files"][1], "primary": True, "name": "main.safetensors"}
    version["files"] = [{**version["files"][1], "downloadUrl": f"{web.url}/no"}, primary]
    web.files["/api/v1/model-versions/5"] = json.dumps(version).encode()
    assert got("civitai.com/model-versions/5")[0].name == "main"


def test_civitai_s_pickles_are_refused(web: FileServer) -> None:
    civitai(web, metadata={"format": "PickleTensor"})
    assert "is a pickle" in refused("civitai.com/models/1")


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b"null", b'{"modelVersions": []}', b'{"modelVersions": [{"id": "x"}]}']
)
def test_an_answer_of_civitai_that_makes_no_sense(web: FileServer, answer: bytes) -> None:
    web.files["/api/v1/models/1"] = answer
    assert "states no file to download" in refused("civitai.com/models/1")


def test_offline_an_address_that_a_token_told_is_for_its_owner(
    web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_server() as other:
        other.files["/f"] = LORA
        civitai(web, downloadUrl=f"{other.url}/f")
        key = got("civitai.com/models/1")[0].key
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    assert got("civitai.com/models/1")[0].key == key
    assert "SDXL_OFFLINE is set" in refused("civitai.com/models/1", tokens=Tokens())


def test_a_token_goes_to_nobody_else(web: FileServer) -> None:
    with file_server() as other:
        other.files["/f"] = LORA
        web.always["/me/tuned/_weights"] = redirect(f"{other.url}/f")
        got("me/tuned")
        civitai(web, downloadUrl=f"{other.url}/f")
        got("civitai.com/models/1")
        assert {token for *_, token in other.log} == {None}


@pytest.mark.parametrize(
    ("source", "path", "token"),
    [
        ("me/repo/x.safetensors", "/me/repo/resolve/main/x.safetensors", "hf_api_token"),
        (f"me/tuned:{ID}", f"/me/tuned/versions/{ID}/_weights", "replicate_api_token"),
        ("civitai.com/models/1", "/api/v1/models/1", "civitai_api_token"),
    ],
)
@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refusal_names_the_token(web: FileServer, source: str, path: str, token: str, code: int) -> None:
    web.always[path] = status(code)
    assert f"({code})" in (said := refused(source))
    assert f"set {token}" in said
    assert web.url not in said


@pytest.mark.parametrize("code", [401, 403, 404, 500])
def test_a_refusal_by_any_server_names_no_token(web: FileServer, code: int) -> None:
    web.always["/any/TOK.safetensors"] = status(code)
    said = refused(f"{web.url}/any/TOK.safetensors?x=secret")
    assert str(code) in said
    assert "_token" not in said


def test_a_page_in_place_of_the_file(web: FileServer) -> None:
    civitai(web, hashes={})
    web.files["/cdn/5"] = b"<!doctype html><title>sign in</title>"
    assert "is a web page; give the address of the file itself, or set civitai_api_token" in refused(
        "civitai.com/models/1"
    )


@pytest.mark.parametrize("token", ["with space", "line\nbreak", "ümlaut"])
def test_a_token_that_is_none_is_not_shown(web: FileServer, token: str) -> None:
    said = refused("me/repo/x.safetensors", tokens=Tokens(huggingface=f"secret{token}"))
    assert said == "hf_api_token has characters that no token has; copy it again"
    assert web.log == []
    assert "secret" not in repr(SECRET)


@pytest.mark.parametrize(
    "url",
    [
        f"data:;base64,{base64.b64encode(LORA).decode()}",
        f"DATA:application/octet-stream;base64,{base64.b64encode(LORA).decode()[:40]}\n"
        f"{base64.b64encode(LORA).decode()[40:]}",
        f"data:,{quote(LORA)}",
    ],
)
def test_inline(url: str) -> None:
    files, names = got(url)
    assert (files.key, names) == (hashlib.sha256(LORA).hexdigest(), {"weights.safetensors"})
    assert files.shown == f"data:... ({len(LORA)} bytes)"
    assert got(url)[0].key == files.key


@pytest.mark.parametrize(
    "url", ["data:", "data:;base64", "data:;base64,a?secret", "data:,secret", f"data:,{'x' * 10**6}"]
)
def test_inline_that_is_none(url: str) -> None:
    assert len(refused(url)) < 200


@pytest.mark.parametrize(
    "body",
    [",{}".format("%41" * 20_000_000), ";base64,{}".format("%41" * 20_000_000), ";base64,{}".format("A " * 2**23)],
)
def test_inline_in_bounded_memory(body: str) -> None:
    tracemalloc.start()
    began = time.thread_time()
    assert len(refused(f"data:{body}")) < 200
    assert time.thread_time() - began < 3
    assert tracemalloc.get_traced_memory()[1] < 6 * len(body)
    tracemalloc.stop()


def test_inline_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_FINETUNE_LIMIT_GB", "0.001")
    monkeypatch.setattr(obtain, "decoded", lambda _: pytest.fail("it is decoded"))
    said = refused(f"data:;base64,{'A' * 2_100_000}")
    assert (
        said == "data:... (2100013 characters) is too long: at most 1000000 bytes are allowed (SDXL_FINETUNE_LIMIT_GB)"
    )


def test_private_addresses_are_refused(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDXL_PRIVATE_INPUTS")
    assert "public internet" in refused(f"{web.url}/any/TOK.safetensors")
    assert web.log == []


def test_what_stands_in_front_of_the_server_may_keep_weights(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDXL_PRIVATE_INPUTS")
    monkeypatch.setenv("SDXL_OWN_FILES", f"{web.url}/")
    assert got(f"{web.url}/any/TOK.safetensors?key")[0].key == hashlib.sha256(LORA).hexdigest()
    assert "public internet" in refused(f"{web.url.replace('127.0.0.1', 'localhost')}/any/TOK.safetensors")


def test_a_redirect_inside_is_refused(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hop is let through as if it were public; the second is the attack."""
    monkeypatch.delenv("SDXL_PRIVATE_INPUTS")
    port = web.server_address[1]
    pretend(monkeypatch, {"outside.test": ["127.0.0.1"], "inside.test": ["127.0.0.1"]}, [])
    checks = iter([True])
    monkeypatch.setattr("fetch.network.is_public", lambda _: next(checks, False))
    web.always["/start"] = redirect(f"http://inside.test:{port}/any/TOK.safetensors")
    assert "'inside.test' is not on the public internet" in refused(f"http://outside.test:{port}/start")
    assert asked(web) == ["/start"]


def test_a_service_may_not_send_us_inside(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained model's address is what its training said; only an endpoint of the operator's may be inside."""
    monkeypatch.delenv("SDXL_PRIVATE_INPUTS")
    civitai(web, downloadUrl=f"{web.url.replace('127.0.0.1', 'localhost')}/cdn/5")
    assert "public internet" in refused("civitai.com/models/1")
    assert "/cdn/5" not in asked(web)


def test_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    path, archive = mine / "TOK.safetensors", mine / "x.tar"
    path.write_bytes(LORA)
    archive.write_bytes(TAR)
    (mine / "sub" / "a.pti").write_bytes(OTHER)
    for allowed in (True, [path], {path, archive}):
        files, names = got(str(path), local=allowed)
        assert (files.name, names, files.key) == ("TOK", {"weights.safetensors"}, hashlib.sha256(LORA).hexdigest())
    assert got(str(archive), local=True)[1] == {"lora.safetensors", "special_params.json"}
    assert got(str(mine), local=[mine])[1] == {"TOK.safetensors", "a.pti"}
    path.write_bytes(OTHER)
    assert got(str(path), local=True)[0].key == hashlib.sha256(OTHER).hexdigest()
    (mine / "B.SAFETENSORS").write_bytes(LORA)
    (mine / "learned_embeds.bin").write_bytes(b"x")
    assert got(str(mine), local=[mine])[1] == {"TOK.safetensors", "a.pti", "B.safetensors"}
    assert f"'learned_embeds.bin' in {mine} is a pickle and was left out" in capsys.readouterr().err
    (mine / "tok.json").write_bytes(b"{}")
    (mine / "tok.JSON").write_bytes(b"{}")
    assert "holds two files 'tok.json' but for the case" in refused(str(mine), local=True)
    assert "does not exist" in refused(str(tmp_path / "absent"), local=True)
    (tmp_path / "empty").mkdir()
    assert "holds no" in refused(str(tmp_path / "empty"), local=True)


@pytest.mark.parametrize(
    "source", ["{}/x.safetensors", "{}", "~/x", "./x", "../x", "x.safetensors", "a/x.tar", "C:\\x", "file:///x"]
)
@pytest.mark.parametrize("local", [False, (), [Path("/elsewhere")]])
def test_a_request_reads_no_path(tmp_path: Path, source: str, local: Any) -> None:
    (tmp_path / "x.safetensors").write_bytes(LORA)
    assert "paths are read on the command line only; send a URL" in refused(source.format(tmp_path), local=local)


@pytest.mark.parametrize(
    "source", ["", "word", "a b", "ftp://host/f", "a/b/c", "a/b:1", "https://", "x" * 10**5, "a//b", "/"]
)
def test_what_is_no_source(source: str) -> None:
    said = refused(source)
    assert "send a" in said
    assert len(said) < 400


@given(st.text(max_size=60) | st.from_regex(r"(https?://|civitai\.com/|hf\.co/)?[a-z./:?=0-9%@#\\-]{0,40}"))
def test_any_text_is_a_source_or_an_error(source: str) -> None:
    try:
        where: Any = understood(source, tokens=Tokens(), first="replicate", local=())
    except WeightsError as error:
        where = str(error)
    assert len(where) < 400 if isinstance(where, str) else not isinstance(where, tuple) or isinstance(where[0], Plan)
