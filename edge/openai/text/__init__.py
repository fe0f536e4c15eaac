"""What chat and legacy completions share."""
