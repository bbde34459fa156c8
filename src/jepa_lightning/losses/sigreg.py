"""SIGReg: push embeddings towards an isotropic Gaussian (Balestriero and LeCun, LeJEPA, arXiv 2511.08544)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from jepa_lightning.losses.distributed import sum_over_ranks


def sigreg(embeddings: Tensor, directions: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """How far embeddings are from an isotropic Gaussian: the Epps-Pulley test of normality along directions.

    For N samples and a direction a, the statistic is `N ∫ |φ(t) − exp(−t²/2)|² exp(−t²/2) dt`, with φ the empirical
    characteristic function of `aᵀz`; its mean over directions is about 1.05 for Gaussian samples, whatever N and D, and
    0.402 N where all of them are zero. The integrand is even, so the quadrature takes points from zero on. Samples are
    those of all processes. Everything is in float32, under mixed precision too.

    Args:
        embeddings: `[..., N, D]`; leading dimensions (views) are tested one by one.
        directions: unit vectors `[D, M]`, the same on all processes.
        knots: points of the trapezoidal rule on `[0, t_max]`, at least two.
        t_max: where the integral is cut off.

    Returns:
        The statistic, averaged over directions and leading dimensions.

    Raises:
        ValueError: fewer than two dimensions.

    Source: LeJEPA (arXiv 2511.08544), section 4.

    >>> round(float(sigreg(torch.zeros(1000, 16), torch.eye(16))), 1)
    402.0
    """
    _check(embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        t = torch.linspace(0.0, t_max, knots, dtype=torch.float32, device=embeddings.device)
        gaussian = torch.exp(-t.square() / 2)
        angles = (embeddings.float() @ directions).unsqueeze(-1) * t
        cos, sin = sum_over_ranks(torch.stack([angles.cos().sum(-3), angles.sin().sum(-3)]))
        num = cos[..., :1]  # at t = 0 every sample of every rank counts one
        error = (cos / num - gaussian).square() + (sin / num).square()
        statistic = 2 * torch.trapezoid(num * error * gaussian, t)
    return statistic.mean()


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularisation: `sigreg` along random directions.

    Directions are drawn anew at every call in training, from the number of calls alone, which every rank knows and a
    checkpoint keeps.

    Args:
        num_slices: number of directions.
        knots: points of the trapezoidal rule on `[0, t_max]`, at least two.
        t_max: where the integral is cut off.

    Raises:
        ValueError: a value out of its range.

    Source: LeJEPA (arXiv 2511.08544), section 4.

    >>> z = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    >>> bool(0.8 < SIGReg()(z) < 1.3), round(float(SIGReg()(torch.zeros(1000, 16))), 1)
    (True, 402.0)
    """

    def __init__(self, num_slices: int = 1024, knots: int = 17, t_max: float = 3.0) -> None:
        super().__init__()
        if num_slices < 1 or knots < 2 or t_max <= 0:
            raise ValueError(
                f"num_slices must be at least 1, knots at least 2 and t_max above 0, got {num_slices}, {knots}, {t_max}"
            )
        self.num_slices = num_slices
        self.knots = knots
        self.t_max = t_max
        self.step = 0

    def forward(self, embeddings: Tensor) -> Tensor:
        """The statistic, averaged over directions and leading dimensions.

        Args:
            embeddings: `[..., N, D]`; leading dimensions (views) are tested one by one.

        Raises:
            ValueError: fewer than two dimensions.
        """
        _check(embeddings)
        return sigreg(embeddings, self._next_directions(embeddings), self.knots, self.t_max)

    def directions(self, embeddings: Tensor) -> Tensor:
        """The unit vectors `[D, num_slices]` of the current step."""
        device, shape = embeddings.device, (embeddings.shape[-1], self.num_slices)
        generator = Generator(device).manual_seed(self.step)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
        return drawn / drawn.norm(dim=0)

    @torch.compiler.disable  # of a number that changes in every step, a compiler would make a new program
    def _next_directions(self, embeddings: Tensor) -> Tensor:
        directions = self.directions(embeddings)
        if self.training:
            self.step += 1
        return directions

    def get_extra_state(self) -> Any:
        """The step, so that a resumed training goes on with the directions it would have had."""
        return self.step

    def set_extra_state(self, state: Any) -> None:
        """Go to the step of a checkpoint."""
        self.step = state


def _check(embeddings: Tensor) -> None:
    if embeddings.ndim < 2:
        raise ValueError(f"SIGReg wants embeddings [..., N, D], got {list(embeddings.shape)}")
