"""Jobs are claimed, asked of models, finished, rescued; label stats are refreshed."""
