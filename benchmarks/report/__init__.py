"""Results, their page, plots and the README's table."""
