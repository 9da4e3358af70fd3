"""Pictures become numbers: decoded, turned upright, resized, normalized; one at a time, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputRejected, MissingExtra
from toolkit.factory import CODE_ERRORS, first_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
MOST_BROKEN = 0.1
_NAMED = 20
Progress = Callable[[int, int, str], None]


def files_of(folder: Path) -> list[Path]:
    """Lists the pictures of a folder whose sub-folders are classes, in the order of their names; hidden files do not count.

    Raises:
        InputRejected: A class has none, or there are none at all.
    """
    classes = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    found: list[Path] = []
    for one in classes:
        inside = sorted(file for file in one.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        if not inside:
            hint = f"put pictures into it ({', '.join(SUFFIXES[:4])}, ...), or remove the folder"
            raise InputRejected(f"class {one.name!r} has no pictures", where=str(one), hint=hint)
        found += inside
    if not found:
        raise InputRejected("has no folders of pictures", where=str(folder), hint="make one folder for each class: CLASS/picture.jpg")
    return found


def content_of(file: Path) -> str:
    """Returns what is equal for copies of one file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def group_of(pattern: str, name: str, where: str) -> str:
    """Returns the part of a file's name that tells its group: the pattern's first bracket, or all that it matches.

    Raises:
        InputRejected: The pattern is wrong, or does not match.
    """
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise InputRejected(f"{pattern!r} is no regular expression: {error}", where="data.group", hint=r"for example patient_(\d+)") from error
    if not match:
        raise InputRejected(f"the pattern {pattern!r} of data.group matches nothing in {name!r}", where=where, hint="mend the pattern")
    return match.group(1) if match.groups() else match.group(0)


def numbers(
    pictures: Sequence[Path | bytes],
    names: Sequence[str],
    settings: dict[str, Any],
    out: Path,
    progress: Progress,
    where: str = "pictures",
) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
    """Reads pictures into one array on disk.

    Args:
        pictures: Files, or encoded bytes.
        names: What each is called, for messages.
        settings: :meth:`toolkit.data_origin.Image.resolved`.
        out: The ``.npy`` file to write.
        progress: Callback ``(done, total, note)``.
        where: What they come from, for messages.

    Returns:
        The pictures ``[n x c x h x w] float32``, mapped; which of those given they are ``[n] int64``; and those that cannot be read, each with
        ``name`` and ``reason``.

    Raises:
        InputRejected: More than a tenth cannot be read.
        MissingExtra: Pillow is not installed.
    """
    _require_pillow()
    from PIL import Image

    shape = (len(pictures), settings["channels"], settings["height"], settings["width"])
    column = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
    kept: list[int] = []
    broken: list[dict[str, str]] = []
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        try:
            column[len(kept)] = _prepared(picture, settings)
            kept.append(number)
        except (*CODE_ERRORS, Warning, Image.DecompressionBombError) as error:  # Pillow raises whatever a damaged file makes it raise
            broken.append({"name": name, "reason": first_line(error)})
        if number % 50 == 0:
            progress(number, len(pictures), f"reading pictures, {number} of {len(pictures)}")
    if len(broken) > MOST_BROKEN * len(pictures):
        told = "; ".join(f"{one['name']}: {one['reason']}" for one in broken[:3])
        raise InputRejected(f"{len(broken)} of {len(pictures)} pictures cannot be read: {told}", where=where, hint="mend or remove them")
    return column[: len(kept)], np.array(kept, np.int64), broken


def told(broken: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Returns what a report says of pictures that cannot be read: how many, and the first of them."""
    return {"count": len(broken), "first": list(broken[:_NAMED])}


def described(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what a device must do to a picture."""
    return {
        "kind": "image",
        "input": settings["column"],
        "layout": "n c h w",
        "dtype": "float32",
        "steps": [
            "decode, and turn upright as EXIF says",
            "divide 16-bit values by 257, and " + ("convert to RGB" if settings["channels"] == 3 else "convert to grey"),
            f"resize ({settings['resize']}) to {settings['height']} x {settings['width']}, bilinear, antialiased, as Pillow's BILINEAR",
            "divide by 255, subtract mean, divide by std",
        ],
        **{name: settings[name] for name in ("height", "width", "resize", "channels", "mean", "std")},
        "interpolation": "bilinear, antialiased",
        "order": "RGB" if settings["channels"] == 3 else "grey",
    }


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("reading pictures needs Pillow", where="data.train", hint='pip install "edgekit[finetune]"') from error


def _prepared(picture: Path | bytes, settings: dict[str, Any]) -> np.ndarray:
    """Returns one picture, ``[c x h x w] float32``."""
    from PIL import Image, ImageOps

    mode = "RGB" if settings["channels"] == 3 else "L"
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            fitted = _fitted(ImageOps.exif_transpose(_of_bytes(opened)).convert(mode), settings)
    values = np.asarray(fitted, np.float32).reshape(settings["height"], settings["width"], -1) / 255
    return ((values - np.array(settings["mean"], np.float32)) / np.array(settings["std"], np.float32)).transpose(2, 0, 1)


def _of_bytes(picture: Any) -> Any:
    """Returns a picture whose values are 0..255; Pillow would cut those of 16 bits, such as medical scans have, instead of scaling them."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its values are 32-bit numbers (mode {picture.mode}), whose range is unknown; save it with 8 or 16 bits")
    return picture


def _fitted(picture: Any, settings: dict[str, Any]) -> Any:
    from PIL import Image

    width, height = settings["width"], settings["height"]
    if settings["resize"] == "stretch":
        return picture.resize((width, height), Image.Resampling.BILINEAR)
    ratios = (width / picture.width, height / picture.height)
    ratio = max(ratios) if settings["resize"] == "crop" else min(ratios)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    if Image.MAX_IMAGE_PIXELS and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too narrow: resized, it would have {size[0]} x {size[1]}")
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    if settings["resize"] == "crop":
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        return resized.crop((left, top, left + width, top + height))
    mean = tuple(round(255 * one) for one in settings["mean"])
    canvas = Image.new(picture.mode, (width, height), mean if len(mean) > 1 else mean[0])
    canvas.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
    return canvas
