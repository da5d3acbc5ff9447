"""Choosing between equivalent lowerings of a layer by tables of costs, and measuring such tables."""
