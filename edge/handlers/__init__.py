"""HTTP handlers, one file per endpoint family: read, translate, call, write."""
