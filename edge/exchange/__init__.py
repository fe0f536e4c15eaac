"""One HTTP request and its response: the state machine, and the two files that give it a socket."""
