"""Physical limits of what is measured: rates of the machine, and what a step must move."""
