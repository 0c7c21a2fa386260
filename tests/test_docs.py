"""What the documentation says is so."""

import dataclasses
import re
import subprocess

from gateway.settings import Settings
from local.inputs_doc import PAGE, page
from local.package import Package
from tests.conftest import ROOT


def test_the_inputs_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == page(Package.load(ROOT)), "run script/docs"


def test_every_script_is_executable_and_documented() -> None:
    known = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for script in (ROOT / "script").iterdir():
        assert script.stat().st_mode & 0o111, f"{script.name} cannot be run"
        assert f"script/{script.name}" in known, f"script/{script.name} is mentioned nowhere"


def test_links_lead_somewhere() -> None:
    for page_path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page_path.read_text()):
            if not target.startswith("http"):
                assert (page_path.parent / target).exists(), f"{page_path.name} links to {target}"


def test_requirements_are_pinned_exactly() -> None:
    for name in ("requirements.txt", "requirements-local.txt", "requirements-dev.txt", "gateway/requirements.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[0-9][0-9A-Za-z.]*", line), f"{name}: {line}"


def test_every_setting_of_the_gateway_is_documented() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text()
    agent = re.findall(r"\"(GATEWAY_[A-Z_]+)\"", (ROOT / "gateway" / "agent" / "settings.py").read_text())
    names = {f"GATEWAY_{field.name.upper()}" for field in dataclasses.fields(Settings)} | set(agent)
    assert not [name for name in sorted(names) if f"`{name}`" not in page]


def test_no_machine_is_named() -> None:
    """No absolute path of somebody's machine, no key."""
    found = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[^A-Za-z0-9_.-])/(home|root|work|farm)/", "--", ".", ":!tests/test_docs.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert found == ""
