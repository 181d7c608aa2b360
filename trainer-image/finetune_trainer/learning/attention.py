"""Attention over records that lie end to end in one row, none of which sees another: no padding, no mask.

On CUDA this is one variable-length kernel where there is one for such heads; elsewhere one causal call a record. Models
that need more than that (soft caps, sinks) are refused here, and the caller pads instead.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "finetune_packed"

_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


class PackingUnsupported(Exception):
    """The model's attention has something that can't be computed record by record here."""


def register() -> None:
    """Make the attention known to transformers under `NAME`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: tuple[int, ...] | None = None,
    boundaries: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer; tensors are (1, heads, tokens, size)."""
    found = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if segments is None or found or attention_mask is not None or not getattr(module, "is_causal", True):
        raise PackingUnsupported(f"attention with {', '.join(found) or 'a mask of its own'}")
    if boundaries is not None and dropout == 0.0 and _has_kernel(query, key, value):
        longest = max(segments)
        return _varlen(
            query, key, value, boundaries=boundaries, longest=longest, scaling=scaling, window=sliding_window
        ), None
    stored = query.dtype
    if query.device.type == "cpu":  # the bf16 kernel's backward pass takes three times as long
        query, key, value = query.float(), key.float(), value.float()
    # Cut and joined with the heads of a token side by side, as they lie: so nothing is copied to another order.
    parts = zip(
        *(torch.split(tensor.transpose(1, 2), list(segments), 1) for tensor in (query, key, value)), strict=True
    )
    with torch.autocast(query.device.type, enabled=False):
        attended = [
            _one(*(part.transpose(1, 2) for part in one), dropout=dropout, scaling=scaling, window=sliding_window)
            for one in parts
        ]
    return torch.cat([one.transpose(1, 2) for one in attended], 1).to(stored), None


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
        mask = ones.tril() & ones.triu(1 - window)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _has_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the variable-length kernel computes this: what torch's own choice of it wants, with nothing to pad.

    Type, size of the heads and device decide; a model may have layers of either sort.
    """
    from torch.backends.cuda import SDPAParams, can_use_flash_attention

    given = SDPAParams(query, key, value, None, 0.0, True, query.shape[1] != key.shape[1])
    return query.shape[-1] % 8 == 0 and bool(can_use_flash_attention(given))


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    boundaries: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attended = varlen_attn(
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended[None]


def _no_mask(*_: object, **__: object) -> None:
    """`attend` needs none."""
