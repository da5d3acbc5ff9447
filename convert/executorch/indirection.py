"""One indirection buffer for all convolutions of an XNNPACK program, in place of one for each.

XNNPACK reads a convolution's input through a pointer for each output pixel and position of the kernel: 72 bytes a
pixel for 3x3, as much as 18 channels of fp32. By default each convolution keeps such a buffer while the program is
loaded. With XNNPACK's flag for a transient one it fills the buffer when it runs, in the workspace that all ops
share. ExecuTorch serialises the flag and its runtime passes it on, but no option of its lowering sets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CONVOLUTION = "aten.convolution.default"


@contextmanager
def transient_indirection() -> Iterator[None]:
    """Within it, what is lowered to XNNPACK has convolutions with the flag."""
    from executorch.backends.xnnpack.operators import node_visitor
    from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_FLAG_TRANSIENT_INDIRECTION_BUFFER

    visitors = node_visitor._node_visitor_dict
    theirs: Any = visitors[_CONVOLUTION]

    class Flagged(theirs):
        def define_node(self, node: Any, xnn_graph: Any, *others: Any) -> None:
            super().define_node(node, xnn_graph, *others)
            xnn_graph.xnodes[-1].xnode_union.flags |= XNN_FLAG_TRANSIENT_INDIRECTION_BUFFER

    visitors[_CONVOLUTION] = Flagged
    try:
        yield
    finally:
        visitors[_CONVOLUTION] = theirs
