"""The passes of attention over the pixels in training, forward and backward.

The formulas are those of `execution.block_gradients`.

A GPU computes the gradients of q and k as one product, because its time is spent on memory traffic
and launches, not on arithmetic. With q and k side by side and the dG of the heads as blocks on a
diagonal,

    [dq dk] = [q k] [ 2 diag(dQ)     dG     ]
                    [    dG^T    2 diag(dK) ]
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2fdft_cli.core.attention import SMALLEST_NORM, PixelSums, Similarity
from c2fdft_cli.execution.cuda.products import gram_in_pieces, sums_in_pieces
from c2fdft_cli.execution.kernels import sums_of_pixels


class PassesInTorch:
    """The passes by torch's operators, as suits a CPU; qkv: `[n, h, w, 3c]`."""

    def sums(self, qkv: Tensor, heads: int) -> PixelSums:
        """Return the sums over the pixels of q and k, float32."""
        q, k, _ = qkv.chunk(3, dim=-1)
        return sums_of_pixels(q, k, heads)

    def mixed(self, qkv: Tensor, mixing: Tensor, bias: Tensor | None, stream: Tensor) -> Tensor:
        """Return `stream + v mixing^T + bias` in the wider dtype; mixing: `[n, c, c]`."""
        v = qkv.chunk(3, dim=-1)[2]
        out = torch.bmm(v.flatten(1, 2), mixing.transpose(1, 2)).view_as(v)
        return stream + (out if bias is None else out + bias)

    def mixing_grad(self, grad: Tensor, qkv: Tensor) -> Tensor:
        """Return the gradient with respect to mixing, float32; grad: `[n, h, w, c]`."""
        v = qkv.flatten(1, 2).chunk(3, dim=-1)[2]
        return torch.bmm(grad.flatten(1, 2).transpose(1, 2), v).float()

    def qkv_grad(self, grad: Tensor, qkv: Tensor, mixing: Tensor, d: PixelSums) -> Tensor:
        """Return the gradient with respect to qkv; d: the gradients of the sums."""
        # Slices of one tensor, as the backward pass of the depth-wise convolution needs it: three
        # separate gradients would have to be concatenated by one more copy.
        flat = qkv.flatten(1, 2)
        dqkv = torch.empty_like(flat)
        torch.bmm(grad.flatten(1, 2), mixing, out=dqkv.chunk(3, dim=-1)[2])
        self._write_sums_grad(flat, d, dqkv)
        return dqkv.view_as(qkv)

    def _write_sums_grad(self, qkv: Tensor, d: PixelSums, dqkv: Tensor) -> None:
        """Write the gradients of q and k into `dqkv: [n, p, 3c]`, given those of the sums, d."""
        heads, dtype = d.gram.shape[1], qkv.dtype
        (q, k, _), (dq, dk, _) = qkv.chunk(3, dim=-1), dqkv.chunk(3, dim=-1)
        # The part from the squares is written into uninitialised memory; the products of the heads
        # add to it.
        torch.mul(q, 2 * d.q_square.flatten(1)[:, None].to(dtype), out=dq)
        torch.mul(k, 2 * d.k_square.flatten(1)[:, None].to(dtype), out=dk)
        gram = d.gram.to(dtype)
        pieces = (z.chunk(heads, dim=-1) for z in (q, k, dq, dk))
        for h, (qh, kh, dqh, dkh) in enumerate(zip(*pieces, strict=True)):
            dqh.baddbmm_(kh, gram[:, h].transpose(1, 2))
            dkh.baddbmm_(qh, gram[:, h])


class PassesOnCuda(PassesInTorch):
    """The passes with the sums and products that suit a GPU."""

    def sums(self, qkv: Tensor, heads: int) -> PixelSums:
        """Return the sums, from products of pieces of the pixels."""
        q, k, _ = qkv.chunk(3, dim=-1)
        return sums_in_pieces(q, k, heads)

    def mixing_grad(self, grad: Tensor, qkv: Tensor) -> Tensor:
        """Return the gradient with respect to mixing, likewise."""
        return gram_in_pieces(grad.flatten(1, 2), qkv.flatten(1, 2).chunk(3, dim=-1)[2])

    def _write_sums_grad(self, qkv: Tensor, d: PixelSums, dqkv: Tensor) -> None:
        """Read q and k once and write both gradients once, by one product."""
        c2 = 2 * (qkv.shape[-1] // 3)
        torch.bmm(qkv[..., :c2], _sums_grad(d, qkv.dtype), out=dqkv[..., :c2])


def _sums_grad(d: PixelSums, dtype: torch.dtype) -> Tensor:
    """Return the matrix that maps `[q k]` to the gradients of q and k: `[n, 2c, 2c]`."""
    n, heads, width, _ = d.gram.shape
    c = heads * width
    # Built directly in the dtype of the product: built in float32 and then cast, it moved 31 GB
    # more in a coarse step of the official network (counted, bf16, 192 x 64 px).
    matrix = d.gram.new_zeros((n, 2, c, 2, c), dtype=dtype)
    blocks = matrix.view(n, 2, heads, width, 2, heads, width)
    # Each diagonal is a view of the heads' blocks, [n, width, width, heads].
    blocks[:, 0, :, :, 1].diagonal(dim1=1, dim2=3).copy_(d.gram.permute(0, 2, 3, 1))
    blocks[:, 1, :, :, 0].diagonal(dim1=1, dim2=3).copy_(d.gram.permute(0, 3, 2, 1))
    for i, squares in enumerate((d.q_square, d.k_square)):
        matrix[:, i, :, i].diagonal(dim1=1, dim2=2).copy_(2 * squares.flatten(1))
    return matrix.view(n, 2 * c, 2 * c)


def back_through_mixing(
    dmixing: Tensor, alike: Similarity, temperature: Tensor, project_out: Tensor
) -> tuple[PixelSums, Tensor, Tensor]:
    """Return the gradients of sums, temperature and projection, given that of the mixing matrix."""
    cosine, attention, q_norm, k_norm = alike
    out = project_out.float().view(-1, *attention.shape[1:3])
    dmixing = dmixing.view(len(dmixing), -1, *attention.shape[1:3])
    dproject = torch.einsum("nohj,nhij->ohi", dmixing, attention).flatten(1)
    dattention = torch.einsum("ohi,nohj->nhij", out, dmixing)
    dscores = torch.ops.aten._softmax_backward_data(dattention, attention, -1, torch.float32)
    turned, tau = dscores * cosine, temperature.float()
    d = PixelSums(
        dscores * tau / (q_norm[..., :, None] * k_norm[..., None, :]),
        _square_grad(turned.sum(-1) * tau[..., 0], q_norm),
        _square_grad(turned.sum(-2) * tau[..., 0], k_norm),
    )
    dtemperature = turned.sum((0, 2, 3)).view_as(tau)
    return d, dtemperature.to(temperature.dtype), dproject.to(project_out.dtype)


def _square_grad(turned: Tensor, norm: Tensor) -> Tensor:
    """Return `-turned / (2 norm^2)`, and zero where the norm was clamped to the smallest one."""
    return torch.where(norm > SMALLEST_NORM, turned / (-2 * norm.square()), 0.0)
