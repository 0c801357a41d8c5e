"""The Gaussian process of Bayesian optimisation: BoTorch's model and fit, and where its bound is highest.

BoTorch's own posterior spends its time on generality: some 14 ms for a handful of points. A search asks for
thousands, so the bound is calculated here from the fitted model in a few matrix products; a test holds it to
BoTorch's. Decides nothing about which points are known or where to look (``mp2.tuning.bayes``).

References:
    Length scales that grow with the dimension: Hvarfner et al., arXiv:2402.02229.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim import optimize_acqf
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior
from torch import Tensor

from mp2.tuning.stages import Scales

RESTARTS, RAW, STEPS = 4, 256, 25  # of the search for the highest bound
FIT_STEPS = 50


def process(
    points: Tensor, values: Tensor, hyper: dict[str, np.ndarray[Any, Any]], scales: Scales = "each"
) -> SingleTaskGP:
    """A process with Matern 5/2 kernel.

    Args:
        points: ``(n, D)`` in the unit box.
        values: ``(n,)`` to be maximised.
        hyper: Hyper-parameters of an earlier fit; those of the prior when empty.
        scales: ``one`` length scale for all axes (``released`` too), expected at half the box; or one for
            ``each``, expected to grow with the root of the dimension, as distances do.
    """
    if scales == "each":
        kernel: Kernel = get_covar_module_with_dim_scaled_prior(
            ard_num_dims=points.shape[1], use_rbf_kernel=False
        )
    else:
        kernel = MaternKernel(nu=2.5, lengthscale_prior=GammaPrior(3.0, 6.0))
    model = SingleTaskGP(points, values[:, None], covar_module=kernel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in hyper:
                parameter.copy_(torch.from_numpy(hyper[name]))
    return model.eval()


def fit(model: SingleTaskGP) -> dict[str, np.ndarray[Any, Any]]:
    """Fit the hyper-parameters in place and return copies of them."""
    # where no fit is found, the last hyper-parameters, or the prior's, are good enough to ask on
    with suppress(ModelFittingError):
        fit_gpytorch_mll(
            ExactMarginalLogLikelihood(model.likelihood, model),
            optimizer_kwargs={"options": {"maxiter": FIT_STEPS}},
        )
    model.eval()
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def length_scales(model: SingleTaskGP) -> Tensor:
    """``(D,)``."""
    scales: Tensor = model.covar_module.lengthscale.detach().reshape(-1)
    return scales.expand(model.train_inputs[0].shape[-1])


def highest(model: SingleTaskGP, kappa: float, bounds: Tensor) -> Tensor:
    """The point ``(1, D)`` within bounds ``(2, D)`` where mean + kappa * standard deviation is highest."""
    found, _ = optimize_acqf(
        UpperBound(model, kappa),
        bounds,
        q=1,
        num_restarts=RESTARTS,
        raw_samples=RAW,
        options={"maxiter": STEPS},
    )
    point: Tensor = found.detach()
    return point


class UpperBound(AcquisitionFunction):  # type: ignore[misc]  # BoTorch has no types
    """Upper confidence bound of a fitted process, in units of its standardised values.

    Args:
        model: The process.
        kappa: Weight of the standard deviation.
    """

    def __init__(self, model: SingleTaskGP, kappa: float) -> None:
        super().__init__(model)
        self.kappa = kappa
        with torch.no_grad():
            self.scales = length_scales(model)
            self.points = model.train_inputs[0] / self.scales
            self.mean = model.mean_module.constant.detach()
            noise = model.likelihood.noise.detach() * torch.eye(len(self.points), dtype=self.points.dtype)
            factor = torch.linalg.cholesky(self._kernel(self.points) + noise)
            self.weights = torch.cholesky_solve((model.train_targets - self.mean)[:, None], factor)[:, 0]
            self.inverse = torch.linalg.inv(factor)

    def _kernel(self, scaled: Tensor) -> Tensor:
        """Matern 5/2 of points ``(b, D)`` and the known ones, ``(b, n)``."""
        squares = scaled.square().sum(-1)[:, None] + self.points.square().sum(-1)
        # the floor keeps the gradient of the root finite where a point is known
        far = (5 * (squares - 2 * scaled @ self.points.T).clamp_min(1e-12)).sqrt()
        kernel: Tensor = (1 + far + far.square() / 3) * (-far).exp()
        return kernel

    def forward(self, X: Tensor) -> Tensor:
        """Bounds ``(b,)`` of points ``(b, 1, D)``."""
        near = self._kernel(X[:, 0] / self.scales)
        variance = 1 - (near @ self.inverse.T).square().sum(-1)
        bound: Tensor = self.mean + near @ self.weights + self.kappa * variance.clamp_min(1e-12).sqrt()
        return bound
