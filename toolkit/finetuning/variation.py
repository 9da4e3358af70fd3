"""Samples that are never seen twice: pictures that are varied, and samples that are mixed.

Mixup is Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018); CutMix is Yun et al., "CutMix: Regularization Strategy to Train Strong
Classifiers with Localizable Features" (2019); erasing is Zhong et al., "Random Erasing Data Augmentation" (2020). Every draw comes from one
NumPy generator, so that a run can be repeated, and resumed, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from toolkit.errors import ConfigError
from toolkit.training import Finetune

if TYPE_CHECKING:
    import torch

    from toolkit.finetuning.calling import Inputs

_PICTURE_AXES = 4
_LEAST_AREA, _MOST_DEGREES, _MOST_BRIGHTER = 2 / 3, 15.0, 0.2
_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.25), (0.5, 2.0)


@dataclass(frozen=True)
class Mixed:
    """A batch whose samples are perhaps mixed with others of it.

    Attributes:
        inputs: The model's inputs.
        partner: The sample that each one is mixed with ``[n] int64``; ``None`` where none is.
        share: What each keeps of itself, 0..1; its label counts by it, and the partner's by the rest.
    """

    inputs: Inputs
    partner: torch.Tensor | None = None
    share: float = 1.0


def check(inputs: Inputs, settings: Finetune) -> None:
    """Makes sure that a model's inputs can be varied as asked.

    Raises:
        ConfigError: Pictures shall be varied, and there are none; or numbers that are names, such as token ids, shall be mixed.
    """
    told = ", ".join(f"{name} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}" for name, value in inputs.items())
    for key in ("augment", "cutmix"):
        if getattr(settings, key) and not any(_is_picture(value) for value in inputs.values()):
            raise ConfigError(
                f"no input holds pictures [n x c x h x w] of real numbers; there is {told}", where=f"finetune.{key}", hint="leave it out"
            )
    if settings.mixup and not all(value.is_floating_point() for value in inputs.values()):
        raise ConfigError(f"whole numbers cannot be mixed; there is {told}", where="finetune.mixup", hint="leave it out")


def augment(inputs: Inputs, kinds: Sequence[str], generator: np.random.Generator) -> Inputs:
    """Varies every picture by itself, all inputs of one sample alike; what is no picture stays as it is.

    Args:
        inputs: The model's inputs; pictures are ``[n x c x h x w]`` of any range.
        kinds: Of ``flip``, ``crop``, ``rotate``, ``brightness`` and ``erase``.
        generator: Draws everything random.
    """
    count = len(next(iter(inputs.values())))
    moves = _moves(kinds, count, generator)
    brighter = generator.uniform(-_MOST_BRIGHTER, _MOST_BRIGHTER, count) if "brightness" in kinds else None
    erased = _patches(generator.uniform(*_ERASED_AREA, count), generator) if "erase" in kinds else None
    return {name: _varied(value, moves, brighter, erased) if _is_picture(value) else value for name, value in inputs.items()}


def mix(inputs: Inputs, settings: Finetune, generator: np.random.Generator) -> Mixed:
    """Mixes each sample of a batch with another one, where that is asked for and there is another one."""
    import torch

    first = next(iter(inputs.values()))
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(settings, kind)]
    if not kinds or len(first) < 2:
        return Mixed(inputs)
    kind = kinds[int(generator.integers(len(kinds)))]
    alpha = getattr(settings, kind)
    share, partner = float(generator.beta(alpha, alpha)), torch.from_numpy(generator.permutation(len(first))).to(first.device)
    if kind == "mixup":
        return Mixed({name: share * value + (1 - share) * value[partner] for name, value in inputs.items()}, partner, share)
    patch = _patches(np.array([1 - share]), generator, aspect=False)[0]
    pictures = {name: value for name, value in inputs.items() if _is_picture(value)}
    pasted = {name: torch.where(_mask(value, patch[None]), value[partner], value) for name, value in pictures.items()}
    kept = [1 - float(_mask(value, patch[None]).float().mean()) for value in pictures.values()]
    return Mixed({**inputs, **pasted}, partner, float(np.mean(kept)))


def _is_picture(value: torch.Tensor) -> bool:
    return value.ndim == _PICTURE_AXES and value.is_floating_point()


def _moves(kinds: Sequence[str], count: int, generator: np.random.Generator) -> np.ndarray | None:
    """Draws where each picture is looked at: ``[n x 5]`` of mirrored (-1 or 1), angle, size and place of the part."""
    if not {"flip", "crop", "rotate"} & set(kinds):
        return None
    found = np.tile([1.0, 0.0, 1.0, 0.0, 0.0], (count, 1))
    if "flip" in kinds:
        found[:, 0] = generator.choice([-1.0, 1.0], count)
    if "rotate" in kinds:
        found[:, 1] = np.radians(generator.uniform(-_MOST_DEGREES, _MOST_DEGREES, count))
    if "crop" in kinds:
        found[:, 2] = np.sqrt(generator.uniform(_LEAST_AREA, 1, count))
        found[:, 3:] = generator.uniform(-1, 1, (count, 2)) * (1 - found[:, 2:3])
    return found


def _varied(pictures: torch.Tensor, moves: np.ndarray | None, brighter: np.ndarray | None, erased: np.ndarray | None) -> torch.Tensor:
    import torch

    if moves is not None:
        pictures = _moved(pictures, moves)
    if brighter is not None:
        shift = torch.as_tensor(brighter, dtype=pictures.dtype, device=pictures.device)[:, None, None, None]
        pictures = pictures + shift * pictures.std(dim=(1, 2, 3), keepdim=True, correction=0)
    if erased is not None:
        pictures = torch.where(_mask(pictures, erased), pictures.mean(dim=(2, 3), keepdim=True), pictures)
    return pictures


def _moved(pictures: torch.Tensor, moves: np.ndarray) -> torch.Tensor:
    import torch

    if not moves[:, 1].any() and (moves[:, 2] == 1).all():  # mirrored at most: nothing needs to be interpolated
        mirrored = torch.as_tensor(moves[:, 0] < 0, device=pictures.device)[:, None, None, None]
        return torch.where(mirrored, pictures.flip(-1), pictures)
    height, width = pictures.shape[-2:]
    mirrored, angle, size, right, down = moves.T
    ones = np.stack([np.cos(angle) * mirrored, -np.sin(angle) * height / width, np.sin(angle) * mirrored * width / height, np.cos(angle)])
    matrix = np.stack([size * ones[0], size * ones[1], right, size * ones[2], size * ones[3], down], axis=1).reshape(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(torch.as_tensor(matrix, dtype=pictures.dtype), list(pictures.shape), align_corners=False)
    return torch.nn.functional.grid_sample(pictures, grid.to(pictures.device), padding_mode="border", align_corners=False)


def _patches(area: np.ndarray, generator: np.random.Generator, *, aspect: bool = True) -> np.ndarray:
    """Draws rectangles of these shares of the area: ``[n x 4]`` of top, bottom, left and right, 0..1, cut off at the borders."""
    low, high = (math.log(one) for one in _ERASED_ASPECT)
    shape = np.exp(generator.uniform(low, high, len(area))) if aspect else np.ones(len(area))
    half = np.stack([np.sqrt(area * shape), np.sqrt(area / shape)]) / 2
    centre = generator.uniform(0, 1, (2, len(area)))
    (top, left), (bottom, right) = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.stack([top, bottom, left, right], axis=1)


def _mask(pictures: torch.Tensor, patches: np.ndarray) -> torch.Tensor:
    """Says which pixels are in the patch of each picture, ``[n x 1 x h x w] bool``."""
    import torch

    height, width = pictures.shape[-2:]
    top, bottom, left, right = torch.as_tensor(patches, device=pictures.device).T[:, :, None]
    rows, columns = ((torch.arange(size, device=pictures.device) + 0.5) / size for size in (height, width))
    vertical, horizontal = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (vertical[:, :, None] & horizontal[:, None, :])[:, None]
