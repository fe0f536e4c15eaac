"""JSON bytes to typed requests: shared types, the decoder, and parameters refused by name."""
