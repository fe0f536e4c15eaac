"""The gRPC side of the edge: channels, transports, replicas and the choice among them."""
