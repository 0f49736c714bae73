"""Pictures of one digit become images of MNIST: cropped, scaled, centred, light on 0."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from pipeline.prepare_picture import BOX, SIDE, digit_candidates, prepare_digit, resized
from pipeline.sources.digits import draw_digits
from storage.errors import BadDataError

Bytes = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: for these small products, more of them mostly wait."""
    with threadpool_limits(1, "blas"):
        yield


def enlarged(digit: Bytes, height: int = 300, width: int = 200, side: int = 168) -> Bytes:
    """Return a digit, light on 0, in the middle of a larger picture."""
    tile = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    picture = Image.new("L", (width, height))
    picture.paste(tile, ((width - side) // 2, (height - side) // 2))
    return np.array(picture)


def digits(rows: int) -> Bytes:
    """Return digits as the synthetic dataset draws them."""
    images, _ = draw_digits(0, "test", 0, rows)
    return images


@pytest.fixture
def five() -> Bytes:
    """A five whose bar is apart from its body, 160 x 120 pixels on a picture of 200 x 200."""
    picture = np.zeros((200, 200), np.uint8)
    picture[20:36, 70:160] = 255
    picture[42:100, 50:66] = 255
    picture[90:106, 50:140] = 255
    picture[90:180, 130:146] = 255
    picture[164:180, 40:146] = 255
    return picture


def same(one: Bytes, other: Bytes, most: float = 5) -> bool:
    """Return whether two images differ by little more than noise and a pixel's shift."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    rolled = (np.roll(one, shift, (0, 1)).astype(int) for shift in shifts)
    return min(np.abs(image - other).mean() for image in rolled) < most


def test_box_and_centre_of_mass() -> None:
    """The larger side of the digit has 20 pixels; its centre of mass is at pixel 14."""
    for digit in digits(20):
        image = prepare_digit(enlarged(digit), "x.png").image
        assert (image.shape, image.dtype) == ((SIDE, SIDE), np.uint8)
        rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
        assert BOX - 1 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= BOX
        for axis in (0, 1):
            centre = np.average(np.arange(SIDE), weights=image.sum(axis, dtype=float))
            assert abs(centre - SIDE / 2) <= 0.51


def stretched(image: Bytes, width: int, height: int) -> Bytes:
    """Return an image at another size, without its proportions."""
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (250, 200), (28, 36)])
def test_a_stretched_image_is_unstretched(size: tuple[int, int]) -> None:
    """The last candidate is what the picture would be without the change of proportions."""
    for digit in digits(20):
        image = 255 - prepare_digit(digit, "x.png").image
        expected = prepare_digit(stretched(image, 200, 200), "x.png").image
        unstretched = digit_candidates(stretched(image, *size), "x.png")[-1]
        assert unstretched.steps == ("unstretched", "inverted", "cropped", "centred")
        assert same(expected, unstretched.image, most=10)


def test_proportions_are_kept_as_a_candidate_unless_margins_are_exact(five: Bytes) -> None:
    """An image moved by a pixel may be a photo; one with MNIST's margins is surely stretched."""
    image = prepare_digit(five, "x.png").image
    (unstretched,) = digit_candidates(stretched(image, 200, 300), "x.png")
    assert unstretched.steps[0] == "unstretched"
    moved = stretched(np.roll(image, 1, axis=0), 200, 300)
    proportional, unstretched = digit_candidates(moved, "x.png")
    assert proportional.steps == prepare_digit(moved, "x.png").steps
    assert unstretched.steps[0] == "unstretched"


def test_only_pictures_with_the_margins_of_mnist_are_unstretched(five: Bytes) -> None:
    """Square and long pictures, and those with other margins, keep their proportions."""
    image = prepare_digit(five, "x.png").image
    for picture in (
        stretched(image, 200, 200),
        stretched(image, 200, 400),
        stretched(np.pad(image, 4), 200, 300),
        stretched(np.roll(image, 4, axis=0), 200, 300),
    ):
        (prepared,) = digit_candidates(picture, "x.png")
        assert "unstretched" not in prepared.steps


def test_a_wide_digit_is_unstretched_where_it_would_be_refused() -> None:
    """A digit that is too wide for one is accepted if its picture may have been stretched."""
    zero = np.zeros((SIDE, SIDE), np.uint8)
    zero[9:21, 5:25] = 255
    zero[12:18, 8:22] = 0
    wide = stretched(np.roll(zero, 1), 300, 200)
    with pytest.raises(BadDataError, match="several digits"):
        prepare_digit(wide, "x.png")
    (unstretched,) = digit_candidates(wide, "x.png")
    assert same(zero, unstretched.image, most=12)


def test_steps(five: Bytes) -> None:
    """Dark ink on a light background is inverted, and the steps say so."""
    light, dark = prepare_digit(five, "x.png"), prepare_digit(255 - five, "x.png")
    assert light.steps == ("cropped", "centred")
    assert dark.steps == ("inverted", "cropped", "centred")
    assert same(light.image, dark.image)


def test_background() -> None:
    """Gradients, vignettes, noise, ruled lines, frames and specks leave the digit as it was."""
    y, x = np.mgrid[-1:1:300j, -1:1:200j]
    noise = np.random.default_rng(0).normal(0, 15, x.shape)
    frame, ruled = np.zeros(x.shape), np.zeros(x.shape)
    frame[10:-10, 10:-10] = 200
    frame[16:-16, 16:-16] = 0
    ruled[20::40] = ruled[21::40] = ruled[22::40] = 90
    speck = np.zeros(x.shape)
    speck[5:10, 190:195] = 255
    for digit in digits(10):
        picture = enlarged(digit)
        expected = prepare_digit(picture, "x.png").image
        faint = picture * 0.6
        light = [faint + 60 * x - 30 * y + 90, faint + 80 * (x * x + y * y), faint + noise + 60]
        for changed in light + [np.maximum(faint, drawn) for drawn in (frame, speck)]:
            image = prepare_digit(np.clip(changed, 0, 255).astype(np.uint8), "x.png").image
            assert same(expected, image)
        image = prepare_digit(np.maximum(faint, ruled).astype(np.uint8), "x.png").image
        assert same(expected, image, most=10)


def test_a_small_digit_in_a_large_picture(five: Bytes) -> None:
    """The digit is cut out of the picture itself, not of the reduced one it is searched in."""
    photo = np.full((1500, 2000), 230, np.uint8)
    photo[300:500, 1500:1700] = 230 - 0.8 * five
    assert same(prepare_digit(five, "x.png").image, prepare_digit(photo, "x.png").image)


def test_thin_strokes_are_thickened() -> None:
    """A line of one pixel in a large picture is as bright as a stroke of MNIST."""
    picture = np.full((400, 400), 255, np.uint8)
    picture[50:350, 200] = picture[350, 100:300] = picture[50, 120:200] = 0
    prepared = prepare_digit(picture, "x.png")
    assert "thickened" in prepared.steps
    assert 200 < prepared.image[10, 13:16].max()


@pytest.mark.parametrize("shape", [(200, 30), (40, 12), (8, 8), (5000, 700)])
def test_a_one_of_any_size(shape: tuple[int, int]) -> None:
    """A vertical bar stays one, however thin or small."""
    picture = np.zeros(shape, np.uint8)
    height, width = shape
    thick = max(1, height // 100)
    picture[height // 8 : -(height // 8), width // 2 - thick : width // 2 + thick] = 255
    image = prepare_digit(picture, "x.png").image
    rows, columns = (np.flatnonzero((image > 60).any(axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 >= BOX - 2
    assert 1 <= np.ptp(columns) + 1 <= 7


def test_blank_pictures() -> None:
    """A picture without ink is refused, at any size and with any noise or gradient."""
    noise = np.random.default_rng(0).normal(128, 20, (300, 200))
    gradient = np.add.outer(np.arange(100), np.arange(100))
    for picture in (np.zeros((1, 1)), np.full((50, 70), 200), noise, gradient):
        with pytest.raises(BadDataError, match="is blank"):
            prepare_digit(np.clip(picture, 0, 255).astype(np.uint8), "x.png")


def test_several_digits(five: Bytes) -> None:
    """Digits beside each other are refused; a digit in several strokes is not."""
    assert prepare_digit(five, "x.png").image[14, 14]
    for pair in (np.hstack([five, five]), 255 - np.hstack([five, five, five])):
        with pytest.raises(BadDataError, match="several digits"):
            prepare_digit(pair, "x.png")
    bar = np.zeros((100, 100), np.uint8)
    bar[45:55, 5:95] = 255
    with pytest.raises(BadDataError, match="several digits"):
        prepare_digit(bar, "x.png")


def test_digits_above_each_other(five: Bytes) -> None:
    """Digits in a column or a grid are refused; a 1 in two parts is not."""
    for rows, columns in ((2, 1), (3, 1), (2, 2), (4, 3)):
        with pytest.raises(BadDataError, match="several digits"):
            prepare_digit(np.tile(five, (rows, columns)), "x.png")
    one = np.zeros((200, 100), np.uint8)
    one[20:90, 45:55] = one[100:180, 46:56] = 255
    assert prepare_digit(one, "x.png").image[8:20, 14].all()


def test_shadow_in_a_corner(five: Bytes) -> None:
    """A shadow beside the digit is left out, one across it is refused; a digit may touch sides."""
    seven = np.full((300, 200), 240, np.uint8)
    seven[:20] = 10
    for row in range(300):
        seven[row, 180 - row // 3 : 200 - row // 3] = 10
    assert prepare_digit(seven, "x.png").image.any()
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    page = 240 - 0.9 * enlarged(five, 400, 400, 200)

    def shaded(edge: float, softness: float) -> Bytes:
        light = 0.6 + 0.4 / (1 + np.exp(-(x + 0.6 * y + edge) / softness))
        return (page * light).astype(np.uint8)

    for photo in (shaded(0, 0.3), shaded(0.8, 0.1), shaded(0.8, 0.02)):
        assert same(prepare_digit(five, "x.png").image, prepare_digit(photo, "x.png").image)
    with pytest.raises(BadDataError, match="sharp edge"):
        prepare_digit(shaded(0.4, 0.05), "x.png")


def test_resized() -> None:
    """Means are kept where a picture shrinks; a picture of the same size is unchanged."""
    picture = np.random.default_rng(0).integers(0, 256, (90, 120)).astype(np.uint8)
    assert (picture == resized(picture, 90, 120)).all()
    blocks = picture.reshape(9, 10, 12, 10).mean((1, 3))
    assert abs(blocks - resized(picture, 9, 12)).mean() < 8
    assert resized(np.full((3, 5000), 7, np.uint8), 2, 20) == pytest.approx(7)


@pytest.mark.slow
def test_test_digits_are_not_refused(mnist_dir: object) -> None:
    """Of 2,000 test digits, at most two are taken for several."""
    from pipeline.sources.source import open_source

    test = next(split for split in open_source(str(mnist_dir)).splits if split.name == "test")
    (part,) = list(test.parts(2000))[:1]
    images, _ = part.load(part.start, part.stop)
    refused = 0
    for number, image in enumerate(images):
        try:
            prepare_digit(np.asarray(image), f"row {number}")
        except BadDataError:
            refused += 1
    assert refused <= 2
