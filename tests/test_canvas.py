"""A picture goes back where it came from."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from sdxl.canvas import Canvas, make_canvas
from sdxl.picture import open_image, to_mask, to_rgb

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]
Pixels = npt.NDArray[np.uint8]


def canvas(
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    *,
    native: int = 128,
    width: int | None = None,
    height: int | None = None,
    ratio: str = "custom",
    blur: int = 0,
    padding: int | None = None,
) -> Canvas:
    return make_canvas(
        native=native,
        image=image,
        mask=mask,
        width=width,
        height=height,
        aspect_ratio=ratio,
        mask_blur=blur,
        mask_padding=padding,
    )


def picture(size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, size[::-1], dtype=np.uint16))
    bands = random.integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    return Image.fromarray(bands).convert("RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode)


def smooth(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return picture((6, 6), seed).resize(size, Image.Resampling.BICUBIC)


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int], value: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(value, box)
    return mask


def made(work: Canvas, seed: int = 99) -> Image.Image:
    """What a model might return."""
    return picture((work.width, work.height), seed)


def array(image: Image.Image | None) -> Pixels:
    assert image is not None
    return np.asarray(image)


def assert_working_size(work: Canvas) -> None:
    assert work.width % 8 == work.height % 8 == 0
    for part, mode in ((work.image, "RGB"), (work.mask, "L")):
        assert part is None or (part.size, part.mode) == ((work.width, work.height), mode)


def draw_mask(size: tuple[int, int], kind: str, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    left, top = int(random.integers(0, size[0] - 3)), int(random.integers(0, size[1] - 3))
    right, bottom = int(random.integers(left + 1, size[0])), int(random.integers(top + 1, size[1]))
    mask = box_mask(size, (left, top, right, bottom))
    if kind == "scattered":
        mask = Image.fromarray((random.random(size[::-1]) > 0.995).astype(np.uint8) * 255)
    if kind == "grey":
        mask = mask.filter(ImageFilter.GaussianBlur(6))
    assume(array(mask).max() >= 128)
    return mask


def assert_goes_back(work: Canvas, original: Image.Image, blend: Image.Image, scaled: bool) -> None:
    """Whatever the model returns: the right size, kept pixels identical, all that is mixed also repainted."""
    assert_working_size(work)
    result = work.finish(made(work))
    assert result.size == original.size
    weight, kept = array(blend), array(blend) == 0
    assert np.array_equal(array(result)[kept], array(original)[kept])
    left, top, right, bottom = work.box
    assert not np.delete(weight, np.s_[top:bottom], axis=0).any()
    assert not np.delete(weight, np.s_[left:right], axis=1).any()
    patch = made(work).crop((0, 0, *work.content)).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    full = weight[top:bottom, left:right] == 255
    assert np.array_equal(array(result)[top:bottom, left:right][full], array(patch)[full])
    if not scaled:
        assert np.array_equal(array(work.image)[: original.height, : original.width], array(original))


def assert_covered(work: Canvas, region: npt.NDArray[np.bool_]) -> None:
    """Every pixel of the region lies, in the working picture, under a pixel that the model repaints."""
    left, top, right, bottom = work.box
    rows, columns = np.nonzero(region)
    down = ((rows - top + 0.5) * work.content[1] / (bottom - top)).astype(int)
    across = ((columns - left + 0.5) * work.content[0] / (right - left)).astype(int)
    assert (array(work.mask)[down, across] == 255).all()


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(64, 300), st.integers(64, 300)),
    mode=st.sampled_from(MODES),
    kind=st.sampled_from(["box", "scattered", "grey"]),
    blur=st.sampled_from([0, 0, 1, 4, 15]),
    padding=st.sampled_from([None, None, 0, 7, 64, 500]),
    asked=st.sampled_from([None, None, (128, 128), (200, 77)]),
    native=st.sampled_from([96, 128, 512]),
    seed=st.integers(0, 2**20),
)
def test_what_is_not_masked_comes_back(
    size: tuple[int, int],
    mode: str,
    kind: str,
    blur: int,
    padding: int | None,
    asked: tuple[int, int] | None,
    native: int,
    seed: int,
) -> None:
    image, mask = picture(size, seed, mode), draw_mask(size, kind, seed)
    width, height = asked or (None, None)
    original, shown = to_rgb(image), mask
    if asked and padding is None:
        original = ImageOps.fit(original, asked, Image.Resampling.LANCZOS)
        smoothing = Image.Resampling.BILINEAR if kind == "grey" else Image.Resampling.NEAREST
        shown = ImageOps.fit(mask, asked, smoothing)
        assume(array(shown).max() >= 128)
    blend = shown.filter(ImageFilter.GaussianBlur(blur)) if blur else shown
    assume(blend.getbbox() is not None)
    work = canvas(image, mask, native=native, width=width, height=height, blur=blur, padding=padding)
    own = padding is None and (asked is not None or size[0] * size[1] <= 2 * native**2)
    assert_goes_back(work, original, blend, scaled=not own)
    assert_covered(work, array(blend) > 0 if blur else array(shown) >= 128)
    if padding is not None and asked:
        assert max(work.width, work.height) <= 2048


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_comes_back_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture((90, 70)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        upright = ImageOps.exif_transpose(file)
    mask = box_mask(upright.size, (20, 10, 50, 40))
    assert_goes_back(canvas(open_image(tmp_path / "a.png", "image"), mask), upright, mask, scaled=False)


def test_a_mask_of_another_size_and_kind_is_fitted() -> None:
    image = picture((160, 120))
    mask = Image.new("1", (80, 60))
    mask.paste(1, (20, 15, 40, 45))
    work = canvas(image, mask)
    assert np.array_equal(array(work.mask)[:120, :160], array(box_mask((160, 120), (40, 30, 80, 90))))
    assert_goes_back(work, image, box_mask((160, 120), (40, 30, 80, 90)), scaled=False)


def test_a_soft_mask_mixes() -> None:
    image = Image.new("RGB", (64, 64), (0, 100, 200))
    mask = Image.new("L", (64, 64), 128)
    result = canvas(image, mask).finish(Image.new("RGB", (64, 64), (255, 100, 0)))
    assert result.getpixel((9, 9)) == (128, 100, 100)
    assert array(to_mask(mask)).min() == 128


def test_a_huge_image_keeps_its_size_and_a_thin_mask_is_not_lost() -> None:
    image, mask = smooth((2000, 1500)), box_mask((2000, 1500), (700, 0, 701, 1500))
    work = canvas(image, mask)
    assert (work.width, work.height) == (152, 112)
    assert_goes_back(work, image, mask, scaled=True)
    assert_covered(work, array(mask) == 255)
    assert (array(work.mask)[0] == 255).sum() <= 2


def test_padding_works_at_the_size_asked_around_the_mask() -> None:
    image, mask = smooth((900, 700)), box_mask((900, 700), (600, 300, 640, 330))
    work = canvas(image, mask, padding=10)
    assert work.box == (590, 285, 650, 345)  # 60x50 grown to a square
    assert (work.width, work.height) == (128, 128)
    wide = canvas(image, mask, padding=10, width=256, height=128)
    assert (wide.width, wide.height) == (256, 128)
    assert wide.box == (570, 290, 670, 340)
    corner = canvas(image, box_mask((900, 700), (880, 690, 900, 700)), padding=5)
    assert corner.box == (875, 675, 900, 700)
    matching = canvas(image, mask, padding=10, ratio="match_input_image")
    assert matching.content == (145, 113)
    assert matching.box[2] - matching.box[0] == 64


def test_padding_where_the_picture_is_too_narrow_for_the_form_keeps_the_area() -> None:
    image, mask = smooth((640, 80)), box_mask((640, 80), (0, 10, 320, 70))
    work = canvas(image, mask, padding=0)
    assert work.box == (0, 0, 320, 80)
    assert work.content == (256, 64)
    assert_goes_back(work, image, mask, scaled=True)


def test_finish_wants_the_working_size_and_leaves_the_input_alone() -> None:
    image = smooth((100, 100))
    work = canvas(image, box_mask((100, 100), (9, 9, 50, 50)))
    before = image.tobytes()
    first, second = work.finish(made(work, 1)), work.finish(made(work, 2))
    assert first.tobytes() != second.tobytes()
    assert work.finish(made(work, 1)).tobytes() == first.tobytes()
    assert image.tobytes() == before
    with pytest.raises(ValueError, match=r"\(100, 100\), not \(104, 104\)"):
        work.finish(Image.new("RGB", (100, 100)))
