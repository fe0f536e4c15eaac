"""The middleware that runs around every handler, and the headers and errors it makes."""
