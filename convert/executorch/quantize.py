"""8-bit convolutions for XNNPACK, by torchao's PT2E: int8 activations and weights, ranges from calibration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ..precision.layers import QuantizationPlan, convolutions


def quantize(graph: fx.GraphModule, calibration: Sequence[Tensor]) -> tuple[fx.GraphModule, QuantizationPlan]:
    """A copy of a rewritten graph with convolutions in 8 bits, and which they are.

    Activations have one scale and zero point a tensor, weights one scale an output channel. Unlike
    XNNPACKQuantizer, which also puts the reshapes behind a convolution in 8 bits: with those the runtime fails
    ('Propagating input shapes failed with code: xnn_status_invalid_parameter', executorch 1.5.1).

    Args:
        graph: fp32, its convolutions two-dimensional; left as it is.
        calibration: latents that the graph takes, at least one: the ranges of activations are taken from them.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import OP_TO_ANNOTATOR
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import Quantizer

    config = get_symmetric_quantization_config(is_per_channel=True)
    plan: QuantizationPlan | None = None

    class Convolutions(Quantizer):
        """Annotates what `layers` chooses."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            nonlocal plan
            plan = convolutions(model)
            # The annotator asks for a convolution, its weight and its bias.
            nodes = {node for conv in plan.quantized for node in (conv, *conv.all_input_nodes)}
            OP_TO_ANNOTATOR["conv"](model, config, nodes.__contains__)
            return model

        def validate(self, model: fx.GraphModule) -> None:
            pass

    exported = torch.export.export(graph, (calibration[0],)).module()
    observed = prepare_pt2e(exported, Convolutions())
    with torch.no_grad():
        for latents in calibration:
            observed(latents)
    assert plan is not None  # prepare_pt2e annotates
    return convert_pt2e(observed), plan
