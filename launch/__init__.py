"""The `isthmus` command: starts and supervises edge and inference, and prepares their models."""
