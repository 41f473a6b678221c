"""What a link would give before anyone builds it: the analytic link model through the node's own decision."""
