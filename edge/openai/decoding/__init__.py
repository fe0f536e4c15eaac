"""JSON bytes to typed requests: shared types, the decoder, and unsupported parameters."""
