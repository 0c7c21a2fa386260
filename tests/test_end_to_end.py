"""The real coglet, the real predictor, the miniature: what a client of the container meets."""

import base64
import io
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from miniature.oracle import read
from sdxl.output import read_parameters
from tests.serving import Server, data_url, decoded, sentence, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def neighbour() -> Iterator[str]:
    """A web server on this machine, which no request may reach."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}/picture.png"
    web.shutdown()
    thread.join()
    web.server_close()


def bomb() -> str:
    """A PNG of 60,000 x 60,000 pixels in 60 bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(body).decode()


PICTURE = data_url(Image.new("RGB", (64, 64), "white"))
TEXT = "data:text/plain;base64," + base64.b64encode(b"these are no pixels").decode()
HALF = "data:image/png;base64," + base64.b64encode(base64.b64decode(PICTURE.partition(",")[2])[:60]).decode()

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mask": PICTURE}, "mask needs an image|mask.*image"),
    ({"image": PICTURE, "mask": data_url(Image.new("L", (64, 64), 0))}, "white"),
    ({"image": HALF}, "is not a picture"),
    ({"image": TEXT}, "is not a picture"),
    ({"image": bomb()}, "is too large; send at most 64 megapixels"),
    ({"image": "data:image/png;base64,"}, "is not a picture"),
    ({"image": "/etc/hostname"}, "'/etc/hostname' is no picture; send an http"),
    ({"image": "file:///etc/hostname"}, "'file:///etc/hostname' is no picture; send an http"),
    ({"image": ""}, "'' is no picture"),
    ({"image": "http://127.0.0.1:9/x.png"}, "is not on the public internet"),
    ({"image": "http://169.254.169.254/latest/meta-data"}, "is not on the public internet"),
    ({"image": "http://[::1]/x.png"}, "is not on the public internet"),
    ({"image": "http://0x7f000001/x.png"}, "is not on the public internet"),
    ({"prompt": ""}, "prompt is empty; say what the picture should show"),
    ({"prompt": "  \n "}, "prompt is empty"),
    ({"prompt": "(" * 15_000}, "shorten it"),
    ({"prompt": "word " * 10_000}, "50000 characters, 20000 are the most; shorten it"),
    ({"seed": 2**63}, "seed=9223372036854775808 is out of range"),
    ({"clip_skip": 9}, "clip_skip=9 is out of range"),
    ({"aspect_ratio": "16:9", "width": 128}, "aspect_ratio"),
    ({"aspect_ratio": "match_input_image"}, "image"),
    (
        {"refine": "base_image_refiner", "refine_steps": 500, "refine_strength": 0.1},
        "at most 99 refine_steps or a higher strength",
    ),
    ({"width": 100.5}, "100.5"),
]
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"width": 63}, "63 is less than the minimum of 64"),
    ({"height": 5000}, "5000 is greater than the maximum of 2048"),
    ({"seed": -1}, "-1 is less than the minimum of 0"),
    ({"scheduler": "EULER"}, '"EULER" is not one of'),
    ({"guidance_scale": "NaN"}, '"NaN" is not of type'),
    ({"num_outputs": 5}, "5 is greater than the maximum of 4"),
    ({"original_size": "big"}, '"big" does not match'),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_input_gets_one_sentence(asked: dict[str, Any], message: str, server: Server) -> None:
    before = server.files()
    answer = server.post(asked)
    if answer.status_code == 422:
        assert "100.5" in answer.text
        return
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "failed")
    text = sentence(body["error"])
    assert re.search(message, text), text
    assert "\n" not in text
    assert len(text) < 400
    assert "Traceback" not in text
    assert server.files() <= before


@pytest.mark.parametrize(("asked", "message"), INVALID, ids=range(len(INVALID)))
def test_what_the_schema_refuses(asked: dict[str, Any], message: str, server: Server) -> None:
    answer = server.post(asked)
    assert answer.status_code == 422
    assert message in answer.json()["detail"][0]["msg"]


def test_nan_is_no_json(server: Server) -> None:
    body = '{"input": {"guidance_scale": NaN}}'
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{server.url}/predictions", data=body, headers=headers, timeout=30)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "prompt",
    ["🐱 ∞ 猫", "((((((((((a cat", "a cat))))", "(" * 3000, "C++ code", "(a)1.2 (b)-- c++", "red " * 3000, "\x00\x01"],
    ids=range(8),
)
def test_odd_prompts_are_drawn(prompt: str, server: Server) -> None:
    assert server.predict(prompt=prompt, num_inference_steps=1)["status"] == "succeeded"


def test_the_picture_that_was_asked_for(server: Server) -> None:
    asked = {"prompt": "a red circle on a blue background", "num_inference_steps": 20, "seed": 5}
    body = server.predict(**asked, disable_safety_checker=False)
    assert body["status"] == "succeeded"
    (url,) = body["output"]
    assert url.startswith("data:image/png;base64,")
    reading = read(decoded(url).convert("RGB"))
    assert reading.background == "blue"
    assert [seen.color for seen in reading.things] == ["red"]
    assert "Using seed: 5" in body["logs"]
    assert "20/20" in body["logs"]
    assert {"encode_text_seconds", "denoise_seconds", "decode_seconds"} <= body["metrics"].keys()


def test_a_seed_in_the_log_makes_the_same_picture(server: Server) -> None:
    first = server.predict(num_outputs=2)
    seeds = first["logs"].partition("Using seed: ")[2].splitlines()[0].split(", ")
    for seed, url in zip(seeds, first["output"], strict=True):
        again = server.predict(seed=int(seed), num_outputs=1, embed_parameters=False)
        assert decoded(again["output"][0]).tobytes() == decoded(url).tobytes()


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_formats_and_parameters(output_format: str, kind: str, server: Server, tmp_path: Any) -> None:
    asked = {"prompt": "a green star", "seed": 9, "output_format": output_format}
    for embed in (True, False):
        (url,) = server.predict(**asked, embed_parameters=embed)["output"]
        assert decoded(url).format == kind
        path = tmp_path / f"picture.{output_format}"
        path.write_bytes(base64.b64decode(url.partition(",")[2]))
        found = read_parameters(path)
        assert (found.get("seed"), found.get("prompt")) == ((9, "a green star") if embed else (None, None))


@pytest.mark.parametrize("refine", ["no_refiner", "expert_ensemble_refiner", "base_image_refiner"])
@pytest.mark.parametrize(
    ("kind", "size", "orientation"),
    [
        ("L", (96, 72), 1),
        ("RGBA", (77, 101), 1),
        ("1", (128, 128), 1),
        ("I;16", (90, 66), 1),
        ("L", (101, 70), 6),
        ("L", (300, 260), 1),
    ],
)
def test_unmasked_pixels_come_back_as_they_were(
    kind: str, size: tuple[int, int], orientation: int, refine: str, server: Server
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else image
    hole = Image.new("L", upright.size, 0)
    hole.paste(255, (20, 24, 60, 50))
    mask = hole
    if kind == "RGBA":
        mask = Image.new("RGBA", upright.size, (255, 255, 255, 0))
        mask.putalpha(hole)
    elif kind == "1":
        mask = hole.convert("1")
    elif kind == "I;16":
        mask = Image.fromarray(np.asarray(hole).astype(np.uint16) * 257)
    sent = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    body = server.predict(image=sent, mask=data_url(mask), refine=refine, seed=1, num_inference_steps=4)
    assert body["status"] == "succeeded", body
    made = np.asarray(decoded(body["output"][0]))
    assert made.shape == np.asarray(upright).shape
    kept = np.asarray(hole) == 0
    assert np.array_equal(made[kept], np.asarray(upright)[kept])
    assert (made[~kept] != np.asarray(upright)[~kept]).any()


def test_private_addresses_are_out_of_reach(server: Server, neighbour: str) -> None:
    body = server.predict(image=neighbour)
    assert body["status"] == "failed"
    assert "is not on the public internet" in body["error"]


def test_cancel_takes_effect_and_leaves_nothing(server: Server) -> None:
    probe = {"seed": 3, "prompt": "a red circle"}
    before = decoded(server.predict(**probe)["output"][0])
    for number in range(3):
        name = f"cancel-{number}"
        asked = {"id": name, "input": {"num_inference_steps": 500, "width": 256, "height": 256}}
        while True:
            answer = requests.put(
                f"{server.url}/predictions/{name}", json=asked, headers={"Prefer": "respond-async"}, timeout=30
            )
            if answer.status_code == 202:
                break
            time.sleep(0.05)
        logs = ""
        while "/500" not in logs:  # a PUT of a running prediction only reads its state
            state = requests.put(f"{server.url}/predictions/{name}", json=asked, timeout=30).json()
            assert state["status"] in ("starting", "processing"), state
            logs = state.get("logs", "")
        requests.post(f"{server.url}/predictions/{name}/cancel", timeout=30).raise_for_status()
        after = decoded(server.predict(**probe)["output"][0])
        assert f"Prediction cancelled prediction_id={name}" in server.log.read_text()
        assert before.tobytes() == after.tobytes()


def test_the_schema_is_served(server: Server) -> None:
    document = requests.get(f"{server.url}/openapi.json", timeout=30).json()
    properties = document["components"]["schemas"]["Input"]["properties"]
    names = sorted(properties, key=lambda name: properties[name]["x-order"])
    assert names[:3] == ["prompt", "negative_prompt", "image"]
