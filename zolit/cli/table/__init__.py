"""``zolit table``: reproduces a table of a paper, one run for each cell and seed."""
