"""Printed digits that look like handwritten ones: rendered from the fonts that matplotlib ships, so that nothing is downloaded."""

from pathlib import Path

import numpy as np

# Upright, and with digits: not the italic ones, nor those for parts of formulas.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold")
FONTS += ("STIXGeneral", "STIXGeneralBol", "cmb10", "cmr10", "cmss10", "cmtt10")
GRID = 32  # scikit-learn's digits were bitmaps of 32 x 32, of which each pixel counts a block of 4 x 4
BLOCK = 4


def load():
    """Returns the two splits, ``image`` [n x 1 x 8 x 8] float32 in 0..1 and ``label`` [n]: as for the handwritten digits."""
    return {"train": draw(40, np.random.default_rng(0)), "eval": draw(5, np.random.default_rng(1))}


def draw(times, generator):
    """Draws every digit of every font that many times, each time in another way."""
    glyphs = [(glyph(font, digit), digit) for font in FONTS for digit in range(10)] * times
    images = np.stack([vary(picture, generator) for picture, _ in glyphs])
    blocks = images.reshape(len(images), 1, GRID // BLOCK, BLOCK, GRID // BLOCK, BLOCK)
    return {"image": blocks.mean(axis=(3, 5), dtype=np.float32), "label": np.array([digit for _, digit in glyphs])}


def glyph(font, digit):
    """Renders a digit in white on black, cut to its edges."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("L", (160, 160))
    face = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf", 96)
    ImageDraw.Draw(page).text((40, 20), str(digit), fill=255, font=face)
    return page.crop(page.getbbox())


def vary(picture, generator):
    """Turns, slants, stretches, thins or thickens a digit and puts it somewhere on the grid; returns ``[32 x 32] bool``."""
    from PIL import Image, ImageFilter

    slant, turn = generator.uniform(-0.15, 0.35), generator.uniform(-15, 15)
    roomy = Image.new("L", (2 * picture.width, 2 * picture.height))
    roomy.paste(picture, (picture.width // 2, picture.height // 2))
    slanted = roomy.transform(roomy.size, Image.Transform.AFFINE, (1, slant, -slant * roomy.height / 2, 0, 1, 0), Image.Resampling.BILINEAR)
    turned = slanted.rotate(turn, Image.Resampling.BILINEAR)
    cut = turned.crop(turned.getbbox())
    # Handwritten digits were cut so that they fill the height of the grid; they leave out some of its width.
    width = int(np.clip(GRID * cut.width / cut.height * generator.uniform(0.6, 1.2), 6, GRID))
    ink = cut.resize((width, GRID), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(generator.uniform(0.5, 1.5)))
    left = int(np.clip((GRID - width) // 2 + generator.integers(-3, 4), 0, GRID - width))
    page = np.zeros((GRID, GRID), bool)
    page[:, left : left + width] = np.asarray(ink) > generator.uniform(60, 140)
    return page
