"""The page in a real browser, over the real gateway, agent and coglet with the miniature."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from local.package import ROOT
from tests.gateway.browsing import (
    DESK,
    PATIENCE,
    PHONE,
    browsing,
    control,
    enter,
    field,
    overflow,
    settings,
    violations,
    visit,
)
from tests.gateway.running import Gateway, running

SDXL = "stability-ai/sdxl"
QUICK: dict[str, Any] = {"num_inference_steps": 2, "disable_safety_checker": True}
SHORT: dict[str, Any] = {"max_train_steps": 12, "train_batch_size": 1, "lora_rank": 2, "sample_prompts": "a TOK"}
DROPPED = """(bytes) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
  return data;
}"""
ASKING = ("/predictions", "/trainings")
VIEWS = {"create": f"create/{SDXL}", "train": f"train/{SDXL}", "history": "history", "a job": "predictions/{id}"}

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, stack: Gateway) -> Iterator[Page]:
    with visit(browser, stack) as page:
        enter(page, stack, f"create/{SDXL}")
        control(page, "prompt").wait_for()
        yield page


@pytest.fixture(scope="module")
def drawn(stack: Gateway) -> dict[str, Any]:
    """A prediction of two pictures that is there already."""
    asked = {**QUICK, "prompt": "a green star", "num_outputs": 2, "seed": 7}
    body = {"version": latest(stack), "input": asked}
    done: dict[str, Any] = stack.curl("/v1/predictions", "-H", "Prefer: wait=60", body=body).json()
    assert done["status"] == "succeeded", done
    return done


def latest(stack: Gateway) -> str:
    return str(stack.curl(f"/v1/models/{SDXL}").json()["latest_version"]["id"])


def schema(stack: Gateway, component: str) -> dict[str, Any]:
    version = stack.curl(f"/v1/models/{SDXL}/versions/{latest(stack)}").json()
    found: dict[str, Any] = version["openapi_schema"]["components"]["schemas"][component]["properties"]
    return found


def asked(page: Page, keys: str = "") -> Locator:
    """The job that sending the form makes, by its button or with keys."""
    with page.expect_response(lambda got: got.request.method == "POST" and got.url.endswith(ASKING)) as made:
        page.keyboard.press(keys) if keys else page.locator(".submit button").click()
    return page.locator(f'[data-job="{made.value.json()["id"]}"]')


def hearts(folder: Path, most: int = 5) -> list[Path]:
    with zipfile.ZipFile(ROOT / "examples" / "hearts.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][:most]
        return [Path(archive.extract(name, folder)) for name in names]


def test_the_form_is_the_schema(page: Page, stack: Gateway) -> None:
    """Every input has a control that shows its default and its description; a word finds those folded away."""
    properties = schema(stack, "Input")
    page.locator(".rest > summary").click()
    for name, given in properties.items():
        expect(field(page, name)).to_contain_text(given["description"])
        default = given.get("default")
        if isinstance(default, bool):
            assert control(page, name).is_checked() is default, name
        elif isinstance(default, str | int | float):
            assert control(page, name).input_value() == str(default), name
    assert page.locator("[data-field]").count() == len(properties)
    slider = field(page, "prompt_strength").locator("[type=range]")
    assert [slider.get_attribute(name) for name in ("min", "max", "step")] == ["0", "1", "0.01"]
    assert control(page, "hf_api_token").get_attribute("type") == "password"
    page.get_by_label("Find a setting").fill("watermark")
    expect(page.locator(".rest [data-field]")).to_have_count(1)


def test_a_picture_from_the_prompt_to_the_file(page: Page, stack: Gateway) -> None:
    """Asked for with Ctrl+Enter, shown with its seed, downloaded as it is, its parameters and itself used again."""
    settings(page, **QUICK, num_outputs=2)
    control(page, "prompt").fill("a red circle on a blue background")
    job = asked(page, "Control+Enter")
    expect(job.locator(".status")).to_contain_text("Done")
    picture = job.locator(".picture").first
    size = "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert picture.locator("img").first.evaluate(size) == [128, 128]
    seen = stack.curl(f"/v1/predictions/{job.get_attribute('data-job')}").json()
    assert seen["input"] == {**QUICK, "num_outputs": 2, "prompt": "a red circle on a blue background"}
    with page.expect_download() as download:
        picture.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == stack.curl(seen["output"][0]).content
    picture.locator(".look").click()
    expect(picture.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(picture.locator("dialog")).to_be_hidden()
    seed = int((picture.locator(".facts").inner_text()).removeprefix("seed "))
    picture.get_by_role("button", name="Use as input image").click()
    expect(field(page, "image").locator("img")).to_be_visible()
    job.get_by_role("button", name="Use these parameters again").click()
    expect(control(page, "seed")).to_have_value(str(seed))
    assert control(page, "num_outputs").input_value() == "2"


def test_a_picture_from_elsewhere_is_named_and_not_loaded(page: Page, stack: Gateway) -> None:
    address = "https://pictures.invalid/x.png"
    body = {"version": latest(stack), "input": {**QUICK, "prompt": "a red circle", "image": address}}
    job = stack.curl("/v1/predictions", "-H", "Prefer: wait=60", body=body).json()
    assert job["status"] == "failed", job
    enter(page, stack, f"predictions/{job['id']}")
    expect(page.locator(".parameters, details").filter(has_text=address).first).to_be_attached()


def test_an_error_is_said_at_its_field(page: Page) -> None:
    """In the API's words, with the focus there; typing takes it away."""
    settings(page, width=9999)
    page.get_by_role("button", name="Create").click()
    error = field(page, "width").locator(".error")
    expect(error).to_have_text("Must be less than or equal to 2048")
    expect(control(page, "width")).to_be_focused()
    assert control(page, "width").get_attribute("aria-invalid") == "true"
    control(page, "width").fill("128")
    expect(error).to_have_count(0)


def test_progress_cancel_and_history(page: Page, drawn: dict[str, Any]) -> None:
    """A long one is watched and canceled, one fails; the history says so, and leads to each."""
    settings(page, **{**QUICK, "num_inference_steps": 500})
    job = asked(page, "Control+Enter")
    expect(job.locator(".status")).to_contain_text("of 500.")
    assert 0 <= float(job.locator("progress").get_attribute("value") or "nan") < 1
    job.get_by_role("button", name="Cancel").click()
    expect(job.locator(".sentence")).to_have_text("Canceled.")
    settings(page, **QUICK, lora_scales="1\n2")
    expect(asked(page, "Control+Enter").locator(".sentence.error")).to_contain_text("lora_scales")
    page.get_by_role("link", name="History").click()
    expect(page.locator(".tile").nth(0)).to_contain_text("lora_scales")
    expect(page.locator(".tile").nth(1)).to_contain_text("Canceled.")
    page.locator(f'.tile[href="#/predictions/{drawn["id"]}"]').click()
    expect(page.locator("h1")).to_have_text("a green star")
    expect(page.locator(".detail .picture")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_text("History")


def test_a_picture_of_ones_own_goes_in(page: Page, stack: Gateway) -> None:
    """It is sent when dropped, shown, and said by name in the code."""
    settings(page, **QUICK)
    content = io.BytesIO()
    Image.new("RGB", (128, 128), "orange").save(content, "PNG")
    dropped = page.evaluate_handle(DROPPED, list(content.getvalue()))
    field(page, "image").locator(".drop").dispatch_event("drop", {"dataTransfer": dropped})
    expect(field(page, "image").locator(".held")).to_contain_text("mine.png")
    page.locator(".panel > summary").click()
    expect(page.locator(".panel code")).to_contain_text('open("mine.png", "rb")')
    job = asked(page)
    expect(job.locator(".status")).to_contain_text("Done")
    given = stack.curl(f"/v1/predictions/{job.get_attribute('data-job')}").json()["input"]["image"]
    assert stack.curl(f"{given}").json()["name"] == "mine.png"


def test_the_code_does_what_the_form_does(page: Page, stack: Gateway, tmp_path: Path) -> None:
    """The lines for Python, JavaScript and curl run as they are, with quotes in the prompt."""
    settings(page, **QUICK, prompt='it\'s "red"\nü', embed_parameters=False)
    page.locator(".panel > summary").click()
    wanted = {**QUICK, "prompt": 'it\'s "red"\nü', "embed_parameters": False}
    code = {}
    for language in ("Python", "JavaScript", "curl"):
        page.locator(".panel").get_by_role("button", name=language).click()
        code[language] = page.locator(".panel code").inner_text()
    (tmp_path / "run.mjs").write_text(code["JavaScript"])
    (tmp_path / "node_modules").symlink_to(ROOT / ".venv" / "js" / "node_modules")
    commands = [[sys.executable, "-W", "ignore", "-c", code["Python"]], ["node", "run.mjs"], ["sh", "-c", code["curl"]]]
    variables = {**os.environ, "REPLICATE_API_TOKEN": stack.token, "REPLICATE_BASE_URL": stack.url}
    for command in commands:
        run = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        newest = stack.curl("/v1/predictions").json()["results"][0]
        assert (newest["input"], newest["status"]) == (wanted, "succeeded"), command


def test_a_training_from_pictures_to_its_first_picture(page: Page, stack: Gateway, tmp_path: Path) -> None:
    """Pictures become one archive; the loss is drawn as it goes; the new model's form opens and draws."""
    enter(page, stack, f"train/{SDXL}")
    page.get_by_role("button", name="Train").click()
    expect(page.locator("#destination-error")).to_be_visible()
    page.get_by_label("Name of the new model").fill("page-hearts")
    control(page, "input_images").set_input_files(hearts(tmp_path))
    expect(field(page, "input_images").locator(".thumbnails img")).to_have_count(5)
    settings(page, **SHORT)
    job = asked(page)
    expect(job.locator(".curve .mean")).to_be_visible()
    expect(job.locator(".samples img")).to_be_visible()
    assert job.locator(".curve svg").get_attribute("aria-label").endswith("at step 12")  # type: ignore[union-attr]
    seen = stack.curl(f"/v1/trainings/{job.get_attribute('data-job')}").json()
    assert {name: seen["input"][name] for name in SHORT} == SHORT
    sent = stack.curl(f"{seen['input']['input_images']}/download")
    if sent.status == 200:
        assert zipfile.ZipFile(io.BytesIO(sent.content)).testzip() is None
    job.get_by_role("button", name="Try it").click()
    expect(control(page, "prompt")).to_have_value("a photo of TOK")
    assert page.get_by_label("Model").input_value().endswith("/page-hearts")
    settings(page, **QUICK)
    expect(asked(page).locator(".status")).to_contain_text("Done")


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_accessible_on_a_desk_and_fit_a_phone(
    browser: Browser, stack: Gateway, drawn: dict[str, Any], view: str
) -> None:
    """axe-core finds nothing serious, in light and dark; 360 pixels do without sideways scrolling, all unfolded."""
    for size, dark in ((DESK, False), (PHONE, True)):
        with visit(browser, stack, size, dark) as page:
            enter(page, stack, VIEWS[view].format(id=drawn["id"]))
            page.locator(".job, .tile, .nothing").first.wait_for()
            page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
            assert violations(page) == []
            assert overflow(page) <= 0


def test_the_keyboard_is_enough(page: Page, drawn: dict[str, Any]) -> None:
    """Tab goes from the top through the form in the order that is seen, each place shown; Escape leaves the token."""
    page.locator(f'[data-job="{drawn["id"]}"]').wait_for()
    page.evaluate("document.activeElement.blur()")
    places = []
    focus = "((at) => [at.name || at.innerText, getComputedStyle(at).outlineStyle])(document.activeElement)"
    for _ in range(14):
        page.keyboard.press("Tab")
        place, outline = page.evaluate(focus)
        assert outline != "none", place
        places.append(place)
    assert places[0] == "To the content"
    assert [place for place in places if place in ("Create", "Train", "History")] == ["Create", "Train", "History"]
    assert places.index("History") < places.index("prompt") < places.index("negative_prompt")
    page.get_by_role("button", name="Token").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_token_is_asked_for_and_kept_as_chosen(browser: Browser, stack: Gateway) -> None:
    """A link with it leaves nothing in the address; a wrong one is asked for again; the device keeps it if told to."""
    with visit(browser, stack) as page:
        page.goto(stack.url)
        page.get_by_role("textbox", name="Token").fill("r8_wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("dialog")).to_contain_text("does not take this token")
        page.get_by_role("textbox", name="Token").fill(stack.token)
        page.get_by_label("Keep it on this device").check()
        page.get_by_role("button", name="Use it").click()
        page.locator(".desk form").wait_for()
        assert page.evaluate("Object.values(sessionStorage)") == []
        assert stack.token in page.evaluate("Object.values(localStorage)")
    with visit(browser, stack) as page:
        enter(page, stack)
        page.locator(".desk form").wait_for()
        assert stack.token not in page.url
        assert stack.token not in page.evaluate("Object.values(localStorage)")


@pytest.mark.soak
def test_a_long_training_outlives_its_page_and_its_gateway(browser: Browser, tmp_path: Path) -> None:
    """The page is loaded anew and the gateway killed while it trains: there is one training, and it ends well."""
    with running(tmp_path) as own:
        own.agent("sdxl", SDXL, SDXL_CACHE=str(tmp_path / "cache"))
        with visit(browser, own) as page:
            page.set_default_timeout(170_000)
            enter(page, own, f"train/{SDXL}")
            page.get_by_label("Name of the new model").fill("hearts")
            control(page, "input_images").set_input_files(ROOT / "examples" / "hearts.zip")
            settings(page, max_train_steps=300, lora_rank=8, seed=1, sample_prompts="none")
            job = asked(page)
            expect(job.locator(".sentence")).to_contain_text("of 300.")
            page.reload()
            expect(job.locator(".curve .mean")).to_be_visible()
            killed = psutil.Process(own.processes[0].pid).children()[0]
            killed.kill()
            expect(job.locator(".status")).to_contain_text("Done", timeout=170_000)
            assert not killed.is_running()
            job.get_by_role("button", name="Try it").click()
            expect(control(page, "prompt")).to_have_value("a photo of TOK")
            assert own.curl("/v1/trainings").json()["results"][0]["status"] == "succeeded"
            assert len(own.curl("/v1/trainings").json()["results"]) == 1


@pytest.mark.soak
def test_the_history_goes_back_page_by_page(browser: Browser, stack: Gateway) -> None:
    """The API gives a hundred at a time; all are there in the end, each once."""
    version, client = latest(stack), stack.python1()
    made = [client.predictions.create(version=version, input={"prompt": f"number {number}"}) for number in range(150)]
    for prediction in made:
        prediction.cancel()
    with visit(browser, stack) as page:
        enter(page, stack, "history")
        expect(page.locator(".tile")).to_have_count(100)
        page.get_by_role("button", name="Show older ones").click()
        for prediction in made:
            expect(page.locator(f'.tile[href="#/predictions/{prediction.id}"]')).to_have_count(1)
