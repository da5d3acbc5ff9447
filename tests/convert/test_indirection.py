"""What XNNPACK is told about the convolutions' indirection buffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from handheld.convert import TARGETS
from handheld.convert.executorch import program as pte
from handheld.convert.executorch.indirection import transient_indirection
from handheld.convert.graph.capture import capture
from handheld.convert.target import Job

pytest.importorskip("executorch")


X = torch.zeros(1, 2, 8, 8)


@pytest.fixture
def graph():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    return capture(model, (X,))


@pytest.fixture
def flags(monkeypatch):
    """Of the convolutions in what was lowered since it was last called, with their kinds."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    serialized = []
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def recorded(graph, *others):
        serialized.append(graph)
        return serialize(graph, *others)

    def taken():
        nodes = [node.xnode_union for graph in serialized for node in graph.xnodes]
        serialized.clear()
        return [(type(node).__name__, node.flags) for node in nodes if "Conv" in type(node).__name__]

    monkeypatch.setattr(xnnpack_preprocess, "serialize_xnnpack_binary", recorded)
    return taken


def all_with(flag):
    return [(kind, flag) for kind in ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConv2d")]


def test_android_programs_share_one_indirection_buffer(graph, flags, tmp_path):
    from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_FLAG_TRANSIENT_INDIRECTION_BUFFER

    TARGETS["android"].lower(Job(graph, (X,), "fp32", tmp_path / "decoder.pte", (X,)))
    assert flags() == all_with(XNN_FLAG_TRANSIENT_INDIRECTION_BUFFER)


def test_other_lowerings_of_the_process_are_left_alone(graph, flags):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    with pytest.raises(RuntimeError), transient_indirection():
        raise RuntimeError
    pte.to_edge({pte.METHOD: (graph, (X,))}, XnnpackPartitioner())
    assert flags() == all_with(0)
