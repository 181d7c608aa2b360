"""LoRA's forward and backward pass for layers that see the same inputs: query, key and value, or gate and up.

The same mathematics as peft's, without its matrices of the layer's full width beside the layer's own: what the adapter
adds is summed inside matrix products, in both directions, and the narrow products of one input are one product.
Whoever doesn't fit (DoRA, quantized layers, weights that are trained themselves) never comes here.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from torch.nn import functional

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are usually given the same inputs; those that aren't are computed one by one."""


def install(network: torch.nn.Module, name: str) -> None:
    """Give the layers that have adapter `name` this forward pass."""
    for module in network.modules():
        layers = {key: child for key, child in module.named_children() if _fits(child, name)}
        for group in (*TOGETHER, *((key,) for key in layers)):
            found = [layers.pop(key) for key in group if key in layers]
            if found:
                shared = _Shared(found, name)
                for layer in found:
                    layer.forward = MethodType(shared.forward, layer)


def forget(network: torch.nn.Module) -> None:
    """Let go of what a forward pass that broke off has left: it would keep that pass's memory."""
    for module in network.modules():
        shared = getattr(getattr(module.forward, "__func__", None), "__self__", None)
        if isinstance(shared, _Shared):
            shared.forget()


def _fits(module: torch.nn.Module, name: str) -> bool:
    return (
        type(module) is Linear
        and type(module.base_layer) is torch.nn.Linear
        and name in module.lora_A
        and not module.lora_bias[name]
        and name not in module.lora_variant
    )


class _Shared:
    """Layers of which the first that is called computes the others, too, if they are given the same inputs."""

    def __init__(self, layers: Sequence[Any], name: str) -> None:
        self._layers = tuple(layers)
        self._name = name
        self._inputs: torch.Tensor | None = None
        self._version = 0
        self._waiting: dict[int, torch.Tensor] = {}

    def forward(self, layer: Any, inputs: torch.Tensor) -> torch.Tensor:
        """What peft's forward pass gives, up to rounding."""
        if layer.disable_adapters:
            plain: torch.Tensor = layer.base_layer(inputs)
            return plain
        dropout = layer.lora_dropout[self._name]
        if layer.training and getattr(dropout, "p", 0.0):  # each layer drops inputs of its own
            return adapted(inputs, dropout(inputs), [layer], self._name)[0]
        waiting = self._waiting.pop(id(layer), None)
        if waiting is None or self._inputs is not inputs or self._version != inputs._version:
            outputs = adapted(inputs, None, self._layers, self._name)
            self._waiting = {id(one): output for one, output in zip(self._layers, outputs, strict=True)}
            self._inputs, self._version = inputs, inputs._version
            waiting = self._waiting.pop(id(layer))
        if not self._waiting:
            self._inputs = None
        return waiting

    def forget(self) -> None:
        """Keep nothing for layers that weren't called."""
        self._waiting, self._inputs = {}, None


def adapted(
    inputs: torch.Tensor, dropped: torch.Tensor | None, layers: Sequence[Any], name: str
) -> tuple[torch.Tensor, ...]:
    """What these layers make of the same inputs; the adapter sees `dropped` instead, if given."""
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
    weights = [
        part
        for layer in layers
        for part in (
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
        )
    ]
    scales = tuple(layer.scaling[name] for layer in layers)
    with torch.autocast(device, enabled=False):
        flat = inputs.flatten(0, -2).to(dtype)
        seen = None if dropped is None else dropped.flatten(0, -2).to(dtype)
        outputs: tuple[torch.Tensor, ...] = _Adapted.apply(flat, seen, scales, *weights)  # type: ignore[no-untyped-call]
    return tuple(output.view(*inputs.shape[:-1], -1) for output in outputs)


class _Adapted(torch.autograd.Function):
    """inputs W' + bias + scale x (seen A') B' for each layer, and its gradients but for W."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, seen: torch.Tensor | None, scales: Sequence[float], *weights: Any
    ) -> tuple[torch.Tensor, ...]:
        plain, biases, downs, ups = (weights[kind::4] for kind in range(4))
        adapter_inputs = inputs if seen is None else seen
        narrow = adapter_inputs @ _stacked(downs, scales, inputs.dtype).t()
        outputs = []
        for number, part in enumerate(_columns(narrow, downs)):
            bias = biases[number]
            output = functional.linear(
                inputs, plain[number].to(inputs.dtype), None if bias is None else bias.to(inputs.dtype)
            )
            outputs.append(output.addmm_(part, ups[number].to(inputs.dtype).t()))
        ctx.save_for_backward(inputs, seen, narrow, *weights)
        ctx.scales = scales
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        inputs, seen, narrow, *weights = ctx.saved_tensors
        plain, biases, downs, ups = (weights[kind::4] for kind in range(4))
        outgoing = [gradient.contiguous() for gradient in gradients]
        back = torch.cat([g @ up.to(g.dtype) for g, up in zip(outgoing, ups, strict=True)], 1)
        grad_inputs = grad_seen = None
        if ctx.needs_input_grad[0]:
            grad_inputs = outgoing[0] @ plain[0].to(inputs.dtype)
            for gradient, weight in zip(outgoing[1:], plain[1:], strict=True):
                grad_inputs.addmm_(gradient, weight.to(inputs.dtype))
        stacked = _stacked(downs, ctx.scales, inputs.dtype)
        if seen is not None and ctx.needs_input_grad[1]:
            grad_seen = back @ stacked
        elif grad_inputs is not None:
            grad_inputs.addmm_(back, stacked)
        grad_downs = torch.split(back.t() @ (inputs if seen is None else seen), [len(down) for down in downs])
        grads: list[torch.Tensor | None] = []
        for number, part in enumerate(_columns(narrow, downs)):
            bias = biases[number]
            trains_bias = bias is not None and bias.requires_grad
            grads += [
                None,
                outgoing[number].sum(0).to(bias.dtype) if trains_bias else None,
                grad_downs[number].to(downs[number].dtype) * ctx.scales[number],
                (part.t() @ outgoing[number]).t().to(ups[number].dtype),
            ]
        return grad_inputs, grad_seen, None, *grads


def _stacked(downs: Sequence[torch.Tensor], scales: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """All narrowing matrices in one, each times its scale."""
    return torch.cat([down * scale for down, scale in zip(downs, scales, strict=True)]).to(dtype)


def _columns(narrow: torch.Tensor, downs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.split(narrow, [len(down) for down in downs], 1)
