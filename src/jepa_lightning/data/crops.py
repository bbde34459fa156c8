"""How images, and frames alike, come to one size."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and standard deviation of each channel


class Fit:
    """Resize an image until it just covers [rows, columns], and cut out its centre."""

    def __init__(self, size: list[int]) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        """Images `[..., C, H, W]` to `[..., C, rows, columns]`."""
        scale = max(wanted / given for wanted, given in zip(self.size, image.shape[-2:], strict=True))
        cover = [max(wanted, round(given * scale)) for wanted, given in zip(self.size, image.shape[-2:], strict=True)]
        return F.center_crop(F.resize(image, cover, antialias=True), self.size)


class Crop:
    """What is seen of an image: all of it and its centre or, in training, a random part, mirrored or not.

    Args:
        image_size: side of the square images in pixels, or their [rows, columns].
        scale: range of the area of random crops, relative to the image's, between 0 and 1; None, like (1, 1), for none.
        aspect: range of their aspect ratio, width to height, relative to that of `image_size`.
        flip: whether every other training image is mirrored, at random.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> Crop([24, 32], scale=None).size
        [24, 32]
    """

    def __init__(
        self,
        image_size: int | list[int],
        scale: Sequence[float] | None,
        aspect: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = False,
    ) -> None:
        self.size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"image_size={image_size!r} is neither a side in pixels nor [rows, columns].")
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ValueError(f"crop_scale={scale!r} must be two areas, 0 < smallest <= largest <= 1, or None.")
        if not (len(aspect) == 2 and 0 < aspect[0] <= aspect[1]):
            raise ValueError(f"crop_aspect={aspect!r} must be two ratios, 0 < smallest <= largest.")
        self.scale, self.aspect, self.flip = scale, aspect, flip

    def transform(self, role: str) -> Callable[[Tensor], Tensor]:
        """That of images `[..., C, H, W]` of a role, "train" or another."""
        if role != "train":
            return Fit(self.size)
        fit: Callable[[Tensor], Tensor] = Fit(self.size)
        if self.scale is not None and self.scale[0] < 1:
            ratio = self.size[1] / self.size[0]
            smallest, largest = (bound * ratio for bound in self.aspect)
            fit = v2.RandomResizedCrop(self.size, (self.scale[0], self.scale[1]), (smallest, largest), antialias=True)
        return v2.Compose([fit, v2.RandomHorizontalFlip()]) if self.flip else fit


def check_statistics(mean: list[float], std: list[float], channels: int, dataset: str) -> None:
    """Raise a ValueError unless there is a mean and a positive standard deviation for each channel."""
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"mean={mean} and std={std} must have one number for each of the {channels} channels of {dataset}, "
            "and std must be positive."
        )
