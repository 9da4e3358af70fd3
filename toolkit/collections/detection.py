"""Detectors up to their non-maximum suppression: what every phone can execute, with shapes that are always the same.

How many boxes are left after the suppression depends on the picture, which no format here gives a shape. So it is done outside of the
graph, on ``boxes`` and ``scores``, by ``torchvision.ops.batched_nms`` or what the platform has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEAD = "head"
"""What stands after ``#`` in the name of a detector without its suppression."""
OUTPUTS = ("boxes", "scores")
NOTE = (
    "non-maximum suppression is left out: boxes are x1, y1, x2, y2 in pixels of the input, scores are probabilities whose first class is "
    "the background; suppress boxes outside of the graph"
)


def has_head(name: str) -> bool:
    """Whether a torchvision detector computes all of its boxes in one pass and at one size of picture: the SSD family does."""
    return name.startswith("ssd")


def image_size(detector: torch.nn.Module) -> int:
    """Returns the height and width of the pictures that an SSD detector works on."""
    return int(detector.transform.fixed_size[0])


def head_of(detector: torch.nn.Module) -> torch.nn.Module:
    """Returns an SSD detector as a module from ``image`` to ``boxes`` and ``scores``.

    ``image`` is ``[n x 3 x s x s] float32, 0..1``, in the detector's own size; ``boxes`` ``[n x anchors x 4]`` and ``scores``
    ``[n x anchors x classes]``, both ``float32``. Boxes are decoded from the anchors, which are constants, as by Liu et al. 2016,
    "SSD: Single Shot MultiBox Detector" (arXiv:1512.02325), and not yet clipped to the picture.
    """
    import torch

    class Head(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.classifier = detector.backbone, detector.head
            anchors = _anchors(detector)
            corner, size = anchors[:, :2], anchors[:, 2:] - anchors[:, :2]
            self.register_buffer("center", corner + size / 2)
            self.register_buffer("size", size)
            self.register_buffer("scale", 1 / torch.tensor(detector.box_coder.weights))
            self.register_buffer("mean", torch.tensor(detector.transform.image_mean)[:, None, None])
            self.register_buffer("deviation", torch.tensor(detector.transform.image_std)[:, None, None])
            self.largest = float(detector.box_coder.bbox_xform_clip)

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.classifier(list(self.backbone((image - self.mean) / self.deviation).values()))
            offsets = found["bbox_regression"] * self.scale
            center = offsets[..., :2] * self.size + self.center
            half = torch.exp(offsets[..., 2:].clamp(max=self.largest)) * self.size / 2
            return {"boxes": torch.cat([center - half, center + half], -1), "scores": torch.softmax(found["cls_logits"], -1)}

    return Head().eval()


def _anchors(detector: Any) -> torch.Tensor:
    """Returns the detector's default boxes, ``[anchors x 4]``, which depend on the size of the picture alone."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    size = image_size(detector)
    picture = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        features = list(detector.eval().backbone(picture).values())
    anchors: torch.Tensor = detector.anchor_generator(ImageList(picture, [(size, size)]), features)[0]
    return anchors
