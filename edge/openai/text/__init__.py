"""Code that chat and legacy completions share."""
