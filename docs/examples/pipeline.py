"""The restoration as a module in a pipeline of your own: here, with gradients for its input."""

import torch

import c2fdft_cli as c2fdft


class Brighten(torch.nn.Module):
    """The next step of the pipeline."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.clamp(1e-6, 1) ** 0.8


device = "cuda" if torch.cuda.is_available() else "cpu"
restoration = c2fdft.load("derain", device="cpu", precision="fp32").module()
pipeline = torch.nn.Sequential(restoration, Brighten()).to(device)

lq = torch.rand(2, 3, 40, 56, device=device, requires_grad=True)
brightness = pipeline(lq).mean()
brightness.backward()
print(f"the gradient of the mean brightness is at most {lq.grad.abs().max():.1e}")
