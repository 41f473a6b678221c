"""Predicts the key of a link: the analytic link model through the node's own decision."""
