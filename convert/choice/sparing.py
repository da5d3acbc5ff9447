"""A rewrite that takes memory of its own, applied only where this leaves what the model holds as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from handheld.runtime.manifest import RewriteRecord

from ..graph.cost import weight_bytes
from ..graph.rewrite import Graph, Rewrite
from .choose import held_bytes, held_with, live_without

# Of what the model holds, weights and activations: less than two measurements of its peak memory differ by.
_MORE_WEIGHTS = 0.005


@dataclass(frozen=True)
class Sparing(Rewrite):
    """A rewrite, refused at places that hold too much memory with it.

    With it, no more activations may be live at a place than the model has at its fullest place without it, and the
    weights of all places must not grow by more than half a percent of what the model holds. Later places come
    first: in a decoder they have fewer weights and more to compute.
    """

    def run(self, graph: Graph) -> list[RewriteRecord]:
        live = live_without(graph.module)
        most = max(live.values())
        left = _MORE_WEIGHTS * held_bytes(weight_bytes(graph.module), most)
        refused: dict[fx.Node, str] = {}
        for node in reversed(graph.module.graph.nodes):
            match = self.match(node)
            if match is None or self.refusal(match):
                continue
            with_it, more_weights = held_with(self, match, live[node])
            if with_it > most:
                refused[node] = (
                    f"memory: {with_it / 1e6:.0f} MB would be live; the model's peak is {most / 1e6:.0f} MB"
                )
            elif more_weights > left:
                refused[node] = f"memory: its weights take {more_weights / 1e6:.1f} MB more"
            else:
                left -= max(0, more_weights)
        plain = {name: getattr(self, name) for name in Rewrite.__dataclass_fields__}
        limited = replace(Rewrite(**plain), check=lambda match: self.check(match) or refused.get(match[0]))
        return limited.run(graph)


def sparing(rewrite: Rewrite) -> Sparing:
    """The rewrite, refused where it takes too much memory."""
    return Sparing(**{name: getattr(rewrite, name) for name in Rewrite.__dataclass_fields__})
