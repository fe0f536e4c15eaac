"""One HTTP request and its response: the state machine, and the modules that do its I/O."""
