"""Questions, one a file, each runnable; the engine that answers them is in `studies/engine`."""
