"""``zolit bench``: time and memory of a step on this machine, relative to its forward passes."""
