"""The commands of `isthmus` that call running services over gRPC."""
