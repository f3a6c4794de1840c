"""How training images are varied: the whole strategy, in one place. train.py passes it on.

Geometry and colour are Ultralytics' own; the rest is Albumentations (Buslaev et al.,
"Albumentations: Fast and Flexible Image Augmentations", Information 11(2), 2020). Change a value
here and every training uses it.
"""

from __future__ import annotations

from typing import Any

GEOMETRY_AND_COLOUR: dict[str, float] = {
    'mosaic': 1.0,  # probability that four images are joined into one
    'fliplr': 0.5,  # probability of a mirror image; people and cars come from both sides
    'flipud': 0.0,  # cameras do not hang upside down
    'scale': 0.5,  # an image is resized by 0.5 to 1.5
    'translate': 0.1,  # and moved by up to this part of its size
    'hsv_h': 0.015,  # parts of the range by which hue, saturation and value vary
    'hsv_s': 0.7,
    'hsv_v': 0.4,
}
"""Ultralytics' settings of the same names."""

MULTI_SCALE = 0.25
"""With --multi-scale each batch has another size: the input size, up or down by this part."""

MOSAIC_FREE_EPOCHS = 10
"""The last epochs see whole images, as the camera will; of short runs the last fifth does."""


def settings(*, epochs: int, multi_scale: bool) -> dict[str, Any]:
    """The strategy as arguments of Ultralytics' train()."""
    return {
        **GEOMETRY_AND_COLOUR,
        'multi_scale': MULTI_SCALE if multi_scale else 0.0,
        'close_mosaic': min(MOSAIC_FREE_EPOCHS, epochs // 5),
        'augmentations': pixel_transforms(),
    }


def pixel_transforms() -> list[Any]:
    """What a worse camera does to an image: blur, noise removal, no colour, other contrast."""
    # Before the import: the library otherwise asks the network for a newer version of itself.
    import os

    os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'
    import albumentations

    return [
        albumentations.Blur(blur_limit=(3, 7), p=0.01),
        albumentations.MedianBlur(blur_limit=(3, 7), p=0.01),
        albumentations.ToGray(p=0.01),
        albumentations.CLAHE(clip_limit=(1, 4), tile_grid_size=(8, 8), p=0.01),
    ]
